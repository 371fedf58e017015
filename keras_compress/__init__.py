"""keras_compress: model compression for Keras 3 that pays off in the exported .tflite."""

import importlib

from keras_compress import (
    callbacks,
    datasets,
    decomposition,
    distillation,
    export,
    interop,
    layers,
    optimizers,
    profile,
    pruning,
    quantizers,
    regularizers,
    sharing,
)
from keras_compress.convert import convert

__version__ = "0.1.0"

__all__ = [
    "callbacks",
    "convert",
    "datasets",
    "decomposition",
    "distillation",
    "export",
    "interop",
    "layers",
    "optimizers",
    "profile",
    "pruning",
    "quantizers",
    "regularizers",
    "sharing",
    "survey",
]


def __getattr__(name):
    # On first use: `python -m keras_compress.survey` must not find it imported already.
    if name == "survey":
        return importlib.import_module("keras_compress.survey")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
