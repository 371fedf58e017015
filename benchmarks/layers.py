"""Every compressed layer against the stock layer of the same shape, both exported in one run.

    python benchmarks/layers.py [--runs 60]

LiteRT, float32, batch 1, one thread; the two models of a row run in turn in every round.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import publish

import keras_compress as kc
from keras_compress.tables import Table


def dense(shape, units, make):
    return shape, lambda: keras.layers.Dense(units), make


def conv(shape, filters, make):
    return shape, lambda: keras.layers.Conv2D(filters, 3, padding="same"), make


def factorized(form, rank):
    return lambda: kc.layers.FactorizedConv2D(256, 3, padding="same", form=form, rank=rank)


CASES = {
    "TTDense rank 4, 25088 to 4096 (VGG-16 fc6)": dense(
        (25088,),
        4096,
        lambda: kc.layers.TTDense(
            4096, input_modes=(2, 7, 8, 8, 7, 4), output_modes=(4,) * 6, rank=4
        ),
    ),
    "TTDense rank 8, 4096 to 4096": dense(
        (4096,),
        4096,
        lambda: kc.layers.TTDense(4096, input_modes=(8,) * 4, output_modes=(8,) * 4, rank=8),
    ),
    "TTDense rank 8, 1024 to 1024": dense(
        (1024,),
        1024,
        lambda: kc.layers.TTDense(
            1024, input_modes=(4, 8, 8, 4), output_modes=(4, 8, 8, 4), rank=8
        ),
    ),
    "CirculantDense block 128, 4096 to 4096": dense(
        (4096,), 4096, lambda: kc.layers.CirculantDense(4096, block_size=128)
    ),
    "CirculantDense block 64, 1024 to 1024": dense(
        (1024,), 1024, lambda: kc.layers.CirculantDense(1024, block_size=64)
    ),
    "CirculantDense full, 1024 to 1024": dense(
        (1024,), 1024, lambda: kc.layers.CirculantDense(1024)
    ),
    "CirculantDense full, 4096 to 4096": dense(
        (4096,), 4096, lambda: kc.layers.CirculantDense(4096)
    ),
    "HashedDense 1/64, 1024 to 1024": dense(
        (1024,), 1024, lambda: kc.layers.HashedDense(1024, compression=1 / 64)
    ),
    "BinaryDense, float inputs, 1024 to 1024": dense(
        (1024,), 1024, lambda: kc.layers.BinaryDense(1024, input_quantizer=None, scale="mean_abs")
    ),
    "FactorizedDense rank 128, 1024 to 1024": dense(
        (1024,), 1024, lambda: kc.layers.FactorizedDense(1024, rank=128)
    ),
    "FactorizedConv2D tucker c/4, 3x3 256 to 256 at 14x14": conv(
        (14, 14, 256), 256, factorized("tucker", (64, 64))
    ),
    "FactorizedConv2D spatial c/4, same": conv((14, 14, 256), 256, factorized("spatial", 64)),
    "FactorizedConv2D cp rank 192, same": conv((14, 14, 256), 256, factorized("cp", 192)),
    "FactorizedConv2D svd rank 64, same": conv((14, 14, 256), 256, factorized("svd", 64)),
    "BinaryConv2D, float inputs, same": conv(
        (14, 14, 256),
        256,
        lambda: kc.layers.BinaryConv2D(
            256, 3, padding="same", input_quantizer=None, scale="mean_abs"
        ),
    ),
}

#: What issue 2 asks for: (smaller, faster).
ASKED = {
    "TTDense rank 4, 25088 to 4096 (VGG-16 fc6)": (20000, 50),
    "CirculantDense block 128, 4096 to 4096": (50, 28),
    "FactorizedConv2D tucker c/4, 3x3 256 to 256 at 14x14": (7, 7),
    "FactorizedConv2D spatial c/4, same": (5, 5),
}


def export(shape, layer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), layer()])
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    return model, kc.export.to_tflite(model, calibration=x)


def measure(name, runs, reference):
    shape, stock, compressed = CASES[name]
    key = (shape, stock().get_config().get("units", "conv"))
    if key not in reference:
        reference.clear()
        reference[key] = export(shape, stock)
    model, plain = reference[key]
    small_model, small = export(shape, compressed)
    timing = plain.benchmark(small, runs=runs)
    return {
        "layer": name,
        "parameters": small_model.count_params(),
        "macs": kc.profile.macs(small_model),
        "macs_ratio": kc.profile.macs(model) / kc.profile.macs(small_model),
        "tflite_bytes": small.nbytes,
        "gzip_bytes": small.gzip_bytes,
        "smaller": plain.nbytes / small.nbytes,
        "microseconds": timing.microseconds[1],
        "stock_microseconds": timing.microseconds[0],
        "faster": timing.speedups[1],
        "max_error": small.max_error,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--only", default="", help="part of a layer's name")
    options = parser.parse_args()
    reference, results = {}, []
    for name in CASES:
        if options.only in name:
            results.append(measure(name, options.runs, reference))
            print(results[-1], flush=True)
    rows = [
        [
            r["layer"],
            f"{r['tflite_bytes']:,}",
            f"{r['gzip_bytes']:,}",
            f"{r['microseconds']:,.0f}",
            f"{r['macs_ratio']:,.1f}x",
            f"{r['smaller']:,.1f}x",
            f"{r['faster']:,.1f}x",
            "{:,}x / {}x".format(*ASKED[r["layer"]]) if r["layer"] in ASKED else "",
            f"{r['max_error']:.0e}",
        ]
        for r in results
    ]
    header = [
        "layer",
        ".tflite bytes",
        "gzip",
        "us",
        "fewer MACs",
        "smaller",
        "faster",
        "asked",
        "error",
    ]
    if options.only:
        print(Table(header, rows).to_text())
        return
    publish(
        "layers",
        Table(header, rows),
        results,
        "python benchmarks/layers.py",
        f"Ratios to the float32 Keras layer of the same shape exported in the same run; LiteRT, "
        f"batch 1, one thread, median of {options.runs} paired rounds. `error`: largest "
        "difference to Keras, relative to the largest output.",
    )


if __name__ == "__main__":
    main()
