"""DoReFaWeight: weights of DoReFa-Net."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer
from keras_compress.quantizers.quantizer import or_one


@keras.saving.register_keras_serializable(package="keras_compress")
class DoReFaWeight(GridQuantizer):
    """k-bit weights of DoReFa-Net: the `2^k` equidistant levels from -1 to 1, without zero.

    - k > 1: `2 quantize_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1` with
      `quantize_k(r) = round((2^k - 1) r) / (2^k - 1)`. The gradient is straight through
      `quantize_k`, and through `tanh(w) / max|tanh(w)|` it is the derivative.
    - k = 1: `mean|w| * sign(w)`, one scale for the layer, with the identity as gradient.

    For k > 1 the largest weight becomes 1, whatever it was: put a batch normalisation behind the
    layer. It is a method to train with; `kc.quantizers.apply` of it changes the size of outputs.

    Args:
        bits: k, from 1 to 8.

    Raises:
        ValueError: if `bits` is none of these.

    Reference:
        Zhou, Wu, Ni, Zhou, Wen, Zou, "DoReFa-Net: Training Low Bitwidth Convolutional Neural
        Networks with Low Bitwidth Gradients", 2016.

    Example:

    >>> DoReFaWeight(2).encode([-2.0, -0.1, 0.1, 2.0]).ints.tolist()
    [-3, -1, 1, 3]
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
        largest = 2**self.bits - 1
        return (-largest, largest)

    @property
    def grid(self):
        low, high = self.limits
        return np.arange(low, high + 1, 2)

    @property
    def step(self):
        return None if self.bits == 1 else 1.0 / self.limits[1]

    def integers(self, w, scales, training=None):
        if self.bits == 1:
            return ops.where(ops.greater_equal(w, 0.0), 1.0, -1.0)
        largest = float(self.limits[1])
        unit = ops.add(ops.multiply(self._passed(w), 0.5), 0.5)
        return ops.subtract(ops.multiply(2.0, ops.round(ops.multiply(largest, unit))), largest)

    def scales(self, w):
        return self.mean(ops.abs(w)) if self.bits == 1 else super().scales(w)

    def _passed(self, w):
        if self.bits == 1:
            return w
        bounded = ops.tanh(w)
        return ops.divide(bounded, or_one(self.max(ops.abs(bounded))))

    def get_config(self):
        return {"bits": self.bits}
