"""Quantizers for `kernel_quantizer=` and `input_quantizer=`: `kc.quantizers`."""

import importlib

from keras_compress.quantizers.ap2 import ap2
from keras_compress.quantizers.codes import Codes
from keras_compress.quantizers.dorefa_gradient import DoReFaGradient
from keras_compress.quantizers.dorefa_weight import DoReFaWeight
from keras_compress.quantizers.dynamic_tree8 import DynamicTree8
from keras_compress.quantizers.fixed_point import FixedPoint
from keras_compress.quantizers.gradient_quantizer import GradientQuantizer
from keras_compress.quantizers.grid_quantizer import GridQuantizer
from keras_compress.quantizers.minifloat import Minifloat
from keras_compress.quantizers.power_of_two import PowerOfTwo
from keras_compress.quantizers.quantizer import Quantizer
from keras_compress.quantizers.registry import DoReFaActivation, deserialize, get, serialize
from keras_compress.quantizers.residual_sign import ResidualSign
from keras_compress.quantizers.sign import Sign
from keras_compress.quantizers.stochastic_ternary import StochasticTernary
from keras_compress.quantizers.ternary import Ternary
from keras_compress.quantizers.uniform import Uniform
from keras_compress.quantizers.uniform_l2 import UniformL2
from keras_compress.quantizers.unit_uniform import UnitUniform
from keras_compress.quantizers.weight_clip import WeightClip

__all__ = [
    "Codes",
    "DoReFaActivation",
    "DoReFaGradient",
    "DoReFaWeight",
    "DynamicTree8",
    "FixedPoint",
    "GradientQuantizer",
    "GridQuantizer",
    "Minifloat",
    "PowerOfTwo",
    "Quantizer",
    "ResidualSign",
    "SearchStep",
    "Sign",
    "StochasticTernary",
    "Ternary",
    "Uniform",
    "UniformL2",
    "UnitUniform",
    "WeightClip",
    "ap2",
    "apply",
    "compress_on_the_fly",
    "deserialize",
    "freeze_statistics",
    "get",
    "quantize_aware",
    "ristretto",
    "serialize",
    "summary",
]

_OF_MODELS = {
    "SearchStep": "search_step",
    "apply": "post_training",
    "compress_on_the_fly": "compression_on_the_fly",
    "freeze_statistics": "quantize_aware_training",
    "quantize_aware": "quantize_aware_training",
    "ristretto": "ristretto_search",
    "summary": "model_summary",
}


def __getattr__(name):
    # On first use: these need the layers, which need the quantizers.
    if name in _OF_MODELS:
        module = importlib.import_module(f"{__name__}.{_OF_MODELS[name]}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
