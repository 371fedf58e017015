"""Minifloat: floating point of few bits."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.codes import Codes
from keras_compress.quantizers.powers import exact_power
from keras_compress.quantizers.quantizer import Quantizer


@keras.saving.register_keras_serializable(package="keras_compress")
class Minifloat(Quantizer):
    """Floating point of few bits: a sign, `e` bits of exponent, `m` bits of mantissa.

    With the bias `b = 2^(e-1) - 1` the values are `+-2^(E-b) (1 + M / 2^m)` for an exponent field
    `E` from 1 to `2^e - 1`, and `+-2^(1-b) M / 2^m` for `E = 0` (so that zero is one): IEEE 754
    with infinity and NaN given up for one more power of two. Values round to the nearest, ties to
    even mantissas; what is out of range saturates.

    A .tflite stores a kernel as codes of at most 256 values (8 bits in all), on the nearest int8
    grid where LiteRT has no other form; LiteRT computes with no minifloats.

    Args:
        exponent: e, bits of the exponent, from 2 to 6.
        mantissa: m, bits of the mantissa, from 0 to 10.
        ste: Straight-through gradient, `"identity"` or `"clip"`.

    Raises:
        ValueError: if an argument is not one of these.

    Reference:
        Gysel, Motamedi, Ghiasi, "Hardware-oriented Approximation of Convolutional Neural
        Networks", 2016.

    Example:

    >>> q = Minifloat(3, 2)
    >>> q.decode(q.encode([0.3, -5.2, 100.0])).tolist()
    [0.3125, -5.0, 28.0]
    """

    gradients = ("identity", "clip")

    def __init__(self, exponent=4, mantissa=3, ste="identity"):
        super().__init__(ste)
        self.exponent = validation.integer("exponent", exponent, 2, 6, self)
        self.mantissa = validation.integer("mantissa", mantissa, 0, 10, self)

    @property
    def bits(self):
        return 1 + self.exponent + self.mantissa

    @property
    def largest(self):
        """The largest value."""
        return float(2.0**self._highest * (2 - 2.0**-self.mantissa))

    @property
    def _lowest(self):
        """Exponent of the smallest normal number."""
        return 2 - 2 ** (self.exponent - 1)

    @property
    def _highest(self):
        return 2 ** (self.exponent - 1)

    def quantize(self, w, training=None):
        magnitude = ops.minimum(ops.abs(w), self.largest)
        # The logarithm of a power of two may come out a rounding error off.
        near = ops.floor(ops.log2(ops.maximum(magnitude, 2.0**self._lowest)))
        power = exact_power(near)
        above = ops.cast(ops.greater_equal(magnitude, ops.multiply(power, 2.0)), "float32")
        below = ops.cast(ops.less(magnitude, power), "float32")
        exponent = ops.maximum(ops.subtract(ops.add(near, above), below), float(self._lowest))
        step = exact_power(ops.subtract(exponent, self.mantissa))
        return ops.multiply(ops.sign(w), ops.multiply(step, ops.round(ops.divide(magnitude, step))))

    def levels(self, w):
        return self._table()[None]

    def _table(self):
        """All values, ascending."""
        fraction = np.arange(2**self.mantissa) / 2**self.mantissa
        powers = np.exp2(np.arange(self._lowest, self._highest + 1))
        normal = (powers[:, None] * (1 + fraction)).ravel()
        positive = np.concatenate([powers[0] * fraction[1:], normal])
        return np.concatenate([-positive[::-1], [0.0], positive]).astype("float32")

    def encode(self, w):
        table = self._table()
        values = ops.convert_to_numpy(self.quantize(ops.cast(w, "float32")))
        ints = np.searchsorted(table, values).astype(np.min_scalar_type(len(table) - 1))
        return Codes(ints, np.float32(1.0), values=table)

    def get_config(self):
        return {"exponent": self.exponent, "mantissa": self.mantissa, **super().get_config()}
