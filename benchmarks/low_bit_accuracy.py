"""Accuracy of a small CNN with few bits, trained by the recipes of the papers, against float.

    python benchmarks/low_bit_accuracy.py [--seeds 5] [--validate]

For each seed a float network is trained to convergence. int8, INQ, TWN and DoReFa start from its
weights; BNN, with layers in an order of its own, starts from scratch. `--validate` is how epochs
and rates were chosen: accuracy on a fifth of the training split, held out, of other seeds.
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
from keras_compress.quantizers import DoReFaActivation, DoReFaWeight, PowerOfTwo, Ternary
from keras_compress.tables import Table

BATCH = 64
#: First of the seeds of `--validate`; those reported begin at 0.
VALIDATION_SEED = 100


def fit(model, data, rate, epochs, loss=None, **options):
    """Trains a model in place by Adam, its rate falling to 0 along a cosine; returns it."""
    x, y = data
    steps = epochs * -(-len(x) // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, **options)
    return model


def float32(data):
    return fit(conv_model(data[0].shape[1:], 10), data, 2e-3, 40)


def int8(model, data):
    """Weights and activations; statistics frozen for the last epochs."""
    aware = fit(kc.quantizers.quantize_aware(model), data, 2e-4, 6)
    kc.quantizers.freeze_statistics(aware)
    return fit(aware, data, 2e-4, 4)


def inq(model, data):
    """Every kernel, by the portions of the paper; then biases and batch normalisations alone."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    quantize = kc.callbacks.IncrementalQuantization(PowerOfTwo(5), epochs_per_step=4)
    fit(copy, data, 1e-3, 16, callbacks=[quantize])
    # The kernels hold levels only; this marks them as such for the export.
    return kc.quantizers.apply(copy, PowerOfTwo(5))


def twn(model, data):
    """Every kernel."""
    return fit(kc.quantizers.apply(model, Ternary(0.7)), data, 1e-3, 40)


def dorefa(model, data):
    """1-bit weights and 2-bit inputs in all but the first and the last layer."""

    def quantised(layer):
        return kc.layers.QuantConv2D.from_layer(
            layer, kernel_quantizer=DoReFaWeight(1), input_quantizer=DoReFaActivation(2)
        )

    return fit(kc.convert(model, {"conv[23]": quantised}), data, 1e-3, 40)


def bnn(model, data):
    """Signs of weights in every layer, of inputs in all but the first; squared hinge loss."""
    x, y = data
    stack = [keras.Input(x.shape[1:])]
    for i, filters in enumerate((32, 64, 128), start=1):
        stack += [
            kc.layers.BinaryConv2D(
                filters,
                3,
                padding="same",
                use_bias=False,
                input_quantizer=None if i == 1 else "sign",
                name=f"conv{i}",
            ),
            keras.layers.MaxPooling2D() if i < 3 else keras.layers.GlobalAveragePooling2D(),
            keras.layers.BatchNormalization(momentum=0.9),
        ]
    stack += [
        kc.layers.BinaryDense(10, use_bias=False, name="logits"),
        keras.layers.BatchNormalization(momentum=0.9),
    ]
    signs = 2 * keras.utils.to_categorical(y, 10) - 1
    return fit(keras.Sequential(stack), (x, signs), 1e-2, 50, "squared_hinge")


#: Title: function of the float network and the data, bits of (weights, inputs), points asked for.
METHODS = {
    "int8 QAT": (int8, "8 / 8", -0.2),
    "INQ": (inq, "5 / 32", -0.3),
    "TWN": (twn, "1.6 / 32", -0.7),
    "DoReFa, first and last layer float": (dorefa, "1 / 2", -1.5),
    "BNN, first layer's inputs float": (bnn, "1 / 1", -3.0),
}


def load(validate):
    """`(x, y)` to train on and `(x, y)` to measure on."""
    train, test = kc.datasets.digits()
    if not validate:
        return train, test
    x, y = train
    held = np.zeros(len(y), bool)
    for digit in range(10):
        held[np.flatnonzero(y == digit)[2::5]] = True
    return (x[~held], y[~held]), (x[held], y[held])


def measure(model, test, seconds):
    """Accuracy in Keras and of the two exports, and their bytes."""
    x, y = test
    classes = model.predict(x, verbose=0).argmax(-1)
    result = {"keras": float(np.mean(classes == y)), "seconds": seconds}
    for goal in ("latency", "size"):
        lite = kc.export.to_tflite(model, optimize_for=goal)
        exported = lite.predict(x).argmax(-1)
        result[goal] = {
            "accuracy": float(np.mean(exported == y)),
            "same_class": float(np.mean(exported == classes)),
            "bytes": lite.nbytes,
        }
    return result


def run(seed, train, test):
    """The measures of the float network and of each method."""
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    model = float32(train)
    results = {"float": measure(model, test, time.perf_counter() - start)}
    results["float"]["train"] = float(
        np.mean(model.predict(train[0], verbose=0).argmax(-1) == train[1])
    )
    for name, (method, _, _) in METHODS.items():
        # Again, so that a method's result does not hang on those before it.
        keras.utils.set_random_seed(seed)
        start = time.perf_counter()
        trained = method(model, train)
        results[name] = measure(trained, test, time.perf_counter() - start)
    return results


def rows(runs):
    table = []
    for name in runs[0]:
        _, bits, asked = METHODS.get(name, (None, "32 / 32", None))
        in_keras = 100 * np.array([r[name]["keras"] for r in runs])
        reference = 100 * np.array([r["float"]["keras"] for r in runs])
        exported = 100 * np.mean([r[name]["latency"]["accuracy"] for r in runs])
        first, whole = runs[0][name], runs[0]["float"]["latency"]["bytes"]
        cells = [name, bits, f"{in_keras.mean():.2f} % ({np.ptp(in_keras):.2f})"]
        cells += ["", ""] if asked is None else [f"{np.mean(in_keras - reference):+.2f}", asked]
        cells.append(f"{exported:.2f} %")
        for goal in ("latency", "size"):
            size = first[goal]["bytes"]
            cells.append(f"{size:,} ({whole / size:.1f}x)")
        table.append(cells)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validate", action="store_true", help="hold out, and only print")
    options = parser.parse_args()
    train, test = load(options.validate)
    first = VALIDATION_SEED if options.validate else 0
    runs = [run(seed, train, test) for seed in range(first, first + options.seeds)]
    header = "method|bits of weights / inputs|accuracy (spread)|points to float|asked|.tflite"
    header = [*header.split("|"), ".tflite bytes", 'bytes, optimize_for="size"']
    table = Table(header, rows(runs), align="<>>>>>>>")
    if options.validate:
        print(table.to_text())
        return
    publish(
        "low_bit_accuracy",
        table,
        runs,
        "python benchmarks/low_bit_accuracy.py",
        f"scikit-learn's 8x8 digits, {len(train[1]):,} to train on and {len(test[1])} to test: one "
        f"digit of one seed is {100 / len(test[1]) / options.seeds:.2f} points of a mean. Accuracy "
        f"in Keras, mean (largest less smallest) of seeds 0 to {options.seeds - 1}; `.tflite`: the "
        "same of the files; bytes of seed 0's, and how many times smaller than float. Epochs and "
        "rates were chosen on a held-out fifth of the training split with seeds from "
        f"{VALIDATION_SEED} on (`--validate`).",
    )


if __name__ == "__main__":
    main()
