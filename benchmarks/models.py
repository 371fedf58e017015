"""Networks of `keras.applications`, each under every transform that fits it.

    python benchmarks/models.py [--size 224] [--runs 8] [--only ResNet50]

Random weights: sizes, multiply-accumulates and latency do not depend on what was learnt; accuracy
is not asked here. LiteRT, batch 1, one thread; the two models of a row run in turn in every round.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import machine, publish

import keras_compress as kc
from keras_compress.matching import leaf_layers
from keras_compress.tables import Table

NETWORKS = {
    "MobileNetV2": keras.applications.MobileNetV2,
    "ResNet50": keras.applications.ResNet50,
    "VGG16": keras.applications.VGG16,
    "EfficientNetV2B0": keras.applications.EfficientNetV2B0,
    "DenseNet121": keras.applications.DenseNet121,
}

SPARSITY = 0.9


def float16(model):
    return model, {"quantize": "float16"}


def dynamic(model):
    return model, {"quantize": "dynamic"}


def int8(model):
    """Static int8, calibrated on noise. VGG16 would take a minute to say what "dynamic" says."""
    if model.count_params() > 1e8:
        return None
    x = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    return model, {"quantize": "int8", "calibration": x}


def tucker(model):
    """3x3 convolutions as Tucker-2 of a quarter of the channels, stems left out."""

    def fits(layer):
        plain = type(layer) is keras.layers.Conv2D and layer.kernel_size == (3, 3)
        return plain and layer.groups == 1 and layer.kernel.shape[2] >= 16

    def factorized(layer):
        # Fresh factors: fitting random kernels would cost minutes and change no figure.
        channels, filters = layer.kernel.shape[2:]
        config = layer.get_config()
        names = ("name", "strides", "padding", "dilation_rate", "activation", "use_bias")
        return kc.layers.FactorizedConv2D(
            filters,
            3,
            form="tucker",
            rank=(channels // 4, filters // 4),
            **{name: config[name] for name in names},
        )

    if not any(fits(layer) for layer in leaf_layers(model)):
        return None
    return kc.convert(model, {fits: factorized}), {}


def tensor_train(model):
    """VGG16's two large dense layers as tensor trains of rank 4."""
    names = {layer.name for layer in leaf_layers(model)}
    if not {"fc1", "fc2"} <= names:
        return None

    def train(layer):
        return kc.layers.TTDense(layer.units, activation="relu", rank=4, name=layer.name)

    return kc.convert(model, {"fc1": train, "fc2": train}), {}


def sparse(model):
    """The smallest 90 % of each kernel set to zero, in the model itself: the last transform."""
    for layer in leaf_layers(model):
        if type(layer) in (keras.layers.Dense, keras.layers.Conv2D):
            kernel = layer.kernel.numpy()
            size = np.abs(kernel).ravel()
            cut = int(SPARSITY * size.size)
            kernel[np.abs(kernel) < np.partition(size, cut)[cut]] = 0
            layer.kernel.assign(kernel)
    return model, {}


TRANSFORMS = {
    "float16": float16,
    "dynamic int8": dynamic,
    "int8": int8,
    "3x3 convolutions as Tucker-2, rank c/4": tucker,
    "fc1, fc2 as TTDense, rank 4": tensor_train,
    f"{SPARSITY:.0%} zeros, sparse": sparse,
}


def measure(name, options):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    shape = (options.size, options.size, 3)
    model = NETWORKS[name](weights=None, input_shape=shape)
    plain = kc.export.to_tflite(model)
    macs = kc.profile.macs(model)
    results = []
    for transform, apply in TRANSFORMS.items():
        outcome = apply(model)
        if outcome is None:
            continue
        small_model, arguments = outcome
        start = time.perf_counter()
        small = kc.export.to_tflite(small_model, **arguments)
        seconds = time.perf_counter() - start
        timing = plain.benchmark(small, runs=options.runs)
        results.append(
            {
                "network": name,
                "transform": transform,
                "parameters": small_model.count_params(),
                "macs": kc.profile.macs(small_model),
                "tflite_bytes": small.nbytes,
                "microseconds": timing.microseconds[1],
                "smaller": plain.nbytes / small.nbytes,
                "faster": timing.speedups[1],
                "float_microseconds": timing.microseconds[0],
                "export_seconds": seconds,
            }
        )
        print(results[-1], flush=True)
    original = {
        "network": name,
        "transform": "float32",
        "parameters": results[0]["parameters"],
        "macs": macs,
        "tflite_bytes": plain.nbytes,
        "microseconds": float(np.median([r["float_microseconds"] for r in results])),
        "smaller": 1.0,
        "faster": 1.0,
    }
    return [original, *results]


def row(result):
    return [
        result["network"],
        result["transform"],
        f"{result['parameters'] / 1e6:.2f} M",
        f"{result['macs'] / 1e6:,.0f} M",
        f"{result['tflite_bytes'] / 1e6:.2f}",
        f"{result['microseconds'] / 1e3:.1f}",
        f"{result['smaller']:.2f}x",
        f"{result['faster']:.2f}x",
    ]


HEADER = ["network", "form", "parameters", "MACs", ".tflite MB", "ms", "smaller", "faster"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224, help="height and width of the input")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--only", default="", help="part of a network's name; none is published")
    options = parser.parse_args()
    print(machine(), flush=True)
    results = []
    for name in NETWORKS:
        if options.only in name:
            results += measure(name, options)
    table = Table(HEADER, [row(result) for result in results], align="<<>>>>>>")
    if options.only or options.size != 224:
        print(table.to_text())
        return
    publish(
        "models",
        table,
        results,
        "python benchmarks/models.py",
        f"Input {options.size}x{options.size}x3, random weights. Ratios to the float32 export in "
        f"the same run; LiteRT, batch 1, one thread, median of {options.runs} paired rounds. "
        "Tucker-2 leaves stems as they are; only dense layers and plain convolutions get zeros, "
        "which are left out of the file and put back at load.",
    )


if __name__ == "__main__":
    main()
