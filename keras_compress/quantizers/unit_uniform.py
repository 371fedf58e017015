"""UnitUniform: equidistant levels in [0, 1], for activations."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer


@keras.saving.register_keras_serializable(package="keras_compress")
class UnitUniform(GridQuantizer):
    """k-bit activations of DoReFa-Net: `round((2^k - 1) r) / (2^k - 1)`, `r = clip(a, 0, 1)`.

    The gradient is the identity where `0 <= a <= 1`, else 0. Also known as `DoReFaActivation`.
    Meant as `input_quantizer=`: its levels are the int8 ones of scale `1 / (2^k - 1)`.

    Args:
        bits: k, from 1 to 8.

    Raises:
        ValueError: if `bits` is none of these.

    Reference:
        Zhou, Wu, Ni, Zhou, Wen, Zou, "DoReFa-Net: Training Low Bitwidth Convolutional Neural
        Networks with Low Bitwidth Gradients", 2016.

    Example:

    >>> UnitUniform(2).encode([-1.0, 0.4, 0.5, 7.0]).ints.tolist()
    [0, 1, 2, 3]
    """

    gradients = ("identity",)

    def __init__(self, bits=2):
        super().__init__()
        self._bits = validation.integer("bits", bits, 1, 8, self)

    @property
    def bits(self):
        return self._bits

    @property
    def limits(self):
        return (0, 2**self.bits - 1)

    @property
    def step(self):
        return 1.0 / self.limits[1]

    def integers(self, w, scales, training=None):
        return ops.round(ops.multiply(float(self.limits[1]), ops.clip(w, 0.0, 1.0)))

    def _passed(self, w):
        outside = ops.logical_or(ops.less(w, 0.0), ops.greater(w, 1.0))
        return ops.where(outside, ops.zeros_like(w), w)

    def get_config(self):
        return {"bits": self.bits}
