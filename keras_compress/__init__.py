"""keras_compress: model compression for Keras 3 that pays off in the exported .tflite."""

from keras_compress import (
    callbacks,
    decomposition,
    distillation,
    export,
    layers,
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
    "decomposition",
    "distillation",
    "export",
    "layers",
    "profile",
    "pruning",
    "quantizers",
    "regularizers",
    "sharing",
]
