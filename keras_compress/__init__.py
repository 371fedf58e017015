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
    ops,
    optimizers,
    profile,
    pruning,
    quantizers,
    regularizers,
    sharing,
    sparse,
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
    "models",
    "ops",
    "optimizers",
    "profile",
    "pruning",
    "quantizers",
    "regularizers",
    "sharing",
    "sparse",
    "survey",
]


def __getattr__(name):
    # On first use: `python -m keras_compress.survey` must not find it imported already, and models
    # need what all others make.
    if name in ("models", "survey"):
        return importlib.import_module(f"keras_compress.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
