"""DoReFaGradient: gradients of DoReFa-Net."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer
from keras_compress.quantizers.quantizer import or_one


@keras.saving.register_keras_serializable(package="keras_compress")
class DoReFaGradient(GridQuantizer):
    """k-bit gradients of DoReFa-Net, for `GradientQuantizer`: a scale a sample, random rounding.

    `2 m (quantize_k(g / (2 m) + 1/2 + N) - 1/2)`, with `m = max|g|` of the sample (first axis),
    `quantize_k(r) = round((2^k - 1) r) / (2^k - 1)` and noise `N = s / (2^k - 1)`, `s` drawn from
    (-1/2, 1/2): the mean of the draws is the gradient. Without `training` there is no noise. A
    sample whose gradient is zero keeps it.

    Args:
        bits: k, from 1 to 8.
        seed: Seed of the draws.

    Raises:
        ValueError: if `bits` is none of these.

    Reference:
        Zhou, Wu, Ni, Zhou, Wen, Zou, "DoReFa-Net: Training Low Bitwidth Convolutional Neural
        Networks with Low Bitwidth Gradients", 2016.

    Example:

    >>> DoReFaGradient(2).encode([[3.0, -0.8, 0.9], [0.0, 0.5, 1.0]]).ints.tolist()
    [[3, -1, 1], [1, 1, 3]]
    """

    gradients = ("identity",)

    def __init__(self, bits=6, seed=None):
        super().__init__(axis=0)
        self._bits = validation.integer("bits", bits, 1, 8, self)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def bits(self):
        return self._bits

    @property
    def state(self):
        return [self.seed_generator]

    @property
    def limits(self):
        largest = 2**self.bits - 1
        return (-largest, largest)

    @property
    def grid(self):
        low, high = self.limits
        return np.arange(low, high + 1, 2)

    def scales(self, w):
        return ops.divide(self.max(ops.abs(w)), self.limits[1])

    def integers(self, w, scales, training=None):
        largest = self.limits[1]
        # The position among the levels, from 0 to 2^k - 1.
        position = ops.multiply(0.5, ops.add(ops.divide(w, or_one(scales)), float(largest)))
        if training:
            noise = keras.random.uniform(
                ops.shape(w), -0.5, 0.5, dtype="float32", seed=self.seed_generator
            )
            position = ops.add(position, noise)
        index = ops.clip(ops.round(position), 0.0, float(largest))
        return ops.subtract(ops.multiply(2.0, index), float(largest))

    def get_config(self):
        return {"bits": self.bits, "seed": self.seed}
