"""Quantizers for `kernel_quantizer=` and `input_quantizer=`: `kc.quantizers`."""

from keras_compress.quantizers.codes import Codes
from keras_compress.quantizers.quantizer import Quantizer
from keras_compress.quantizers.registry import deserialize, get, serialize
from keras_compress.quantizers.sign import Sign
from keras_compress.quantizers.weight_clip import WeightClip

__all__ = [
    "Codes",
    "Quantizer",
    "Sign",
    "WeightClip",
    "deserialize",
    "get",
    "serialize",
]
