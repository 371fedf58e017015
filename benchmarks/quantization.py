"""Quantize-aware training: speed and size of its int8 exports, cost of a step, accuracy.

    python benchmarks/quantization.py [--runs 20] [--seeds 5]

LiteRT, batch 1, one thread; the two models of a row run in turn in every round. Accuracy is that of
the .tflite on the test digits, a fresh float network trained to convergence for each seed.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import publish

import keras_compress as kc
from keras_compress.demo import conv_model
from keras_compress.tables import Table

FLOAT_EPOCHS, AWARE_EPOCHS, FROZEN_EPOCHS = 40, 10, 4
BATCH = 64


def conv3x3():
    return keras.Sequential(
        [keras.Input((14, 14, 256)), keras.layers.Conv2D(256, 3, padding="same")]
    )


def mobilenet_v2():
    return keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3))


#: Name: the model, and the (faster, smaller) asked for against its float32 export.
EXPORTS = {
    "3x3 conv 256 to 256, 14x14": (conv3x3, (3.5, 3.9)),
    "MobileNetV2, 96x96": (mobilenet_v2, (2.0, None)),
}


def export(name, runs):
    """An int8 export without calibration data against the float32 one."""
    build, asked = EXPORTS[name]
    keras.utils.set_random_seed(0)
    model = build()
    x = np.random.default_rng(0).normal(size=(8, *model.input_shape[1:])).astype("float32")
    plain = kc.export.to_tflite(model)
    small = kc.export.to_tflite(kc.quantizers.quantize_aware(model, data=x))
    timing = plain.benchmark(small, runs=runs)
    return {
        "what": name,
        "faster": timing.speedups[1],
        "smaller": plain.nbytes / small.nbytes,
        "microseconds": timing.microseconds,
        "bytes": [plain.nbytes, small.nbytes],
        "float_inside": sum(op in ("QUANTIZE", "DEQUANTIZE") for op in small.ops[1:-1]),
        "asked_faster": asked[0],
        "asked_smaller": asked[1],
    }


def compiled(model, rate):
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def training_step(runs):
    """A compiled step of the quantize-aware network against one of the float network."""
    keras.utils.set_random_seed(0)
    (x, y), _ = kc.datasets.digits()
    source = compiled(conv_model(x.shape[1:], 10), 1e-3)
    models = source, compiled(kc.quantizers.quantize_aware(source), 1e-3)
    batch = x[:BATCH], y[:BATCH]

    def seconds(model):
        start = time.perf_counter()
        model.train_on_batch(*batch)
        return time.perf_counter() - start

    for model in models:
        for _ in range(3):
            seconds(model)
    times = np.array([[seconds(model) for model in models] for _ in range(3 * runs)])
    return {
        "what": "training step, digits CNN",
        "float_ms": float(np.median(times[:, 0]) * 1e3),
        "aware_ms": float(np.median(times[:, 1]) * 1e3),
        "ratio": float(np.median(times[:, 1] / times[:, 0])),
        "asked": 1.6,
    }


def accuracy(seed):
    """Test accuracy of the .tflite: float, calibrated int8, quantize-aware int8 and int4."""
    keras.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = kc.datasets.digits()
    model = conv_model(x.shape[1:], 10)
    steps = FLOAT_EPOCHS * -(-len(x) // BATCH)
    compiled(model, keras.optimizers.schedules.CosineDecay(2e-3, steps))
    model.fit(x, y, batch_size=BATCH, epochs=FLOAT_EPOCHS, verbose=0)

    def share(lite):
        return float(np.mean(lite.predict(x_test).argmax(-1) == y_test))

    result = {
        "seed": seed,
        "float": share(kc.export.to_tflite(model)),
        "int8, calibrated": share(kc.export.to_tflite(model, quantize="int8", calibration=x[:100])),
    }
    for scheme in ("int8", "int8_weights", "int4_weights"):
        aware = compiled(kc.quantizers.quantize_aware(model, scheme), 2e-4)
        moving = AWARE_EPOCHS - FROZEN_EPOCHS
        aware.fit(x, y, batch_size=BATCH, epochs=moving, verbose=0)
        kc.quantizers.freeze_statistics(aware)
        aware.fit(x, y, batch_size=BATCH, epochs=FROZEN_EPOCHS, verbose=0)
        lite = kc.export.to_tflite(aware)
        result[f"{scheme}, aware"] = share(lite)
        in_keras = aware.predict(x_test, verbose=0).argmax(-1)
        same = in_keras == lite.predict(x_test).argmax(-1)
        result[f"{scheme}, same class as in Keras"] = float(np.mean(same))
    return result


def rows(exports, step, accuracies):
    table = []
    for r in exports:
        asked = [f"{r['asked_faster']}x faster"]
        asked += [f"{r['asked_smaller']}x smaller"] if r["asked_smaller"] else []
        figure = f"{r['faster']:.2f}x faster, {r['smaller']:.2f}x smaller"
        table.append([f"int8, {r['what']}", figure, ", ".join(asked)])
    figure = f"{step['ratio']:.2f}x ({step['float_ms']:.1f} to {step['aware_ms']:.1f} ms)"
    table.append([step["what"], figure, f"at most {step['asked']}x"])
    for name in accuracies[0] if accuracies else ():
        if name == "seed":
            continue
        shares = 100 * np.array([a[name] for a in accuracies])
        change = 100 * np.mean([a[name] - a["float"] for a in accuracies])
        figure = f"{shares.mean():.2f} % (spread {np.ptp(shares):.2f})"
        if name.endswith("aware"):
            figure += f", {change:+.2f} points"
        table.append([f"digits, {name}", figure, "-0.2" if name == "int8, aware" else ""])
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--print-only", action="store_true", help="leave README.md as it is")
    options = parser.parse_args()
    exports = [export(name, options.runs) for name in EXPORTS]
    step = training_step(options.runs)
    accuracies = [accuracy(seed) for seed in range(options.seeds)]
    table = Table(["what", "measured", "asked"], rows(exports, step, accuracies), align="<<<")
    if options.print_only:
        print(table.to_text())
        return
    publish(
        "quantization",
        table,
        {"exports": exports, "training_step": step, "accuracy": accuracies},
        "python benchmarks/quantization.py",
        f"Ratios to the float32 export in the same run, median of {options.runs} paired rounds. "
        "Digits: scikit-learn's 8x8, accuracy of the .tflite on the test split, mean of "
        f"{options.seeds} seeds; {FLOAT_EPOCHS} epochs in float, then {AWARE_EPOCHS} "
        f"quantize-aware, the last {FROZEN_EPOCHS} with frozen statistics.",
    )


if __name__ == "__main__":
    main()
