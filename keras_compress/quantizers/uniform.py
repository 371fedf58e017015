"""Uniform: symmetric integers with the scale set by the largest magnitude."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer
from keras_compress.quantizers.quantizer import or_one


@keras.saving.register_keras_serializable(package="keras_compress")
class Uniform(GridQuantizer):
    """Symmetric uniform quantizer: `step * round(w / step)` with `step = max|w| / (2^(b-1) - 1)`.

    What int8 and int4 weights are in most toolkits: a scale for each output channel, zero is a
    level, the lowest code (-128) is not used. `Uniform(8, axis=None)` is one scale for the layer,
    as Vanhoucke et al. have it. For inputs, `axis=0` gives each sample its own range.

    Args:
        bits: Bits of a code, from 2 to 8.
        axis: What has a scale of its own: each output channel (-1), each sample of a batch (0), or
            the tensor (`None`).
        ste: Straight-through gradient, `"identity"` or `"clip"`.

    Raises:
        ValueError: if an argument is not one of these.

    Reference:
        Vanhoucke, Senior, Mao, "Improving the speed of neural networks on CPUs", 2011.

    Example:

    >>> codes = Uniform(4).encode([[7.0, 0.2], [-3.1, -1.4]])
    >>> codes.ints.tolist()
    [[7, 1], [-3, -7]]
    """

    gradients = ("identity", "clip")

    def __init__(self, bits=8, axis=-1, ste="identity"):
        super().__init__(ste, axis)
        self._bits = validation.integer("bits", bits, 2, 8, self)

    @property
    def bits(self):
        return self._bits

    @property
    def limits(self):
        largest = 2 ** (self.bits - 1) - 1
        return (-largest, largest)

    def integers(self, w, scales, training=None):
        # Rounding of the quotient may take the largest weight one past the end.
        return ops.clip(ops.round(ops.divide(w, scales)), *self.limits)

    def scales(self, w):
        return or_one(ops.divide(self.max(ops.abs(w)), float(self.limits[1])))

    def get_config(self):
        return {"bits": self.bits, "axis": self.axis, **super().get_config()}
