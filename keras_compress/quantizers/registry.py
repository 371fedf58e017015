"""Quantizers by name, configuration or object, as Keras's `get` functions take them."""

import inspect

import keras

from keras_compress import validation
from keras_compress.quantizers.dorefa_gradient import DoReFaGradient
from keras_compress.quantizers.dorefa_weight import DoReFaWeight
from keras_compress.quantizers.dynamic_tree8 import DynamicTree8
from keras_compress.quantizers.fixed_point import FixedPoint
from keras_compress.quantizers.minifloat import Minifloat
from keras_compress.quantizers.power_of_two import PowerOfTwo
from keras_compress.quantizers.quantizer import Quantizer
from keras_compress.quantizers.residual_sign import ResidualSign
from keras_compress.quantizers.sign import Sign
from keras_compress.quantizers.stochastic_ternary import StochasticTernary
from keras_compress.quantizers.ternary import Ternary
from keras_compress.quantizers.uniform import Uniform
from keras_compress.quantizers.uniform_l2 import UniformL2
from keras_compress.quantizers.unit_uniform import UnitUniform

#: By the paper's name and by what it is.
DoReFaActivation = UnitUniform

_BY_NAME = {
    "dorefa_activation": DoReFaActivation,
    "dorefa_gradient": DoReFaGradient,
    "dorefa_weight": DoReFaWeight,
    "dynamic_tree8": DynamicTree8,
    "fixed_point": FixedPoint,
    "minifloat": Minifloat,
    "power_of_two": PowerOfTwo,
    "residual_sign": ResidualSign,
    "sign": Sign,
    "stochastic_ternary": StochasticTernary,
    "ternary": Ternary,
    "uniform": Uniform,
    "uniform_l2": UniformL2,
    "unit_uniform": UnitUniform,
}
_BY_NAME |= {cls.__name__: cls for cls in _BY_NAME.values()}


def get(identifier):
    """Returns the quantizer that `identifier` stands for.

    Args:
        identifier: `None` (gives `None`), a `Quantizer`, a subclass of it, the configuration made
            by `serialize`, a name (`"sign"` or `"Sign"`: the quantizer with its defaults), or the
            name that a subclass of `Quantizer` was registered by
            (`keras.saving.register_keras_serializable`).

    Raises:
        ValueError: if it is none of these.

    Example:

    >>> get("sign").bits
    1
    """
    found = identifier
    if isinstance(identifier, dict):
        found = deserialize(identifier)
    elif isinstance(identifier, str):
        found = _BY_NAME.get(identifier) or keras.saving.get_registered_object(identifier)
    if inspect.isclass(found) and issubclass(found, Quantizer):
        found = found()
    if identifier is None or isinstance(found, Quantizer):
        return found
    raise ValueError(
        f"A quantizer must be a kc.quantizers.Quantizer, its configuration, None or one of "
        f"{', '.join(map(repr, _BY_NAME))}; got {identifier!r}."
        f"{validation.did_you_mean(identifier, _BY_NAME)}"
    )


def serialize(quantizer):
    """Returns the configuration of a quantizer; `None` stays `None`."""
    return keras.saving.serialize_keras_object(quantizer)


def deserialize(config, custom_objects=None):
    """Returns the quantizer of a configuration made by `serialize`."""
    return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
