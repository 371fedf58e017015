"""DynamicTree8: an 8-bit data type with a decimal exponent of varying length."""

import functools

import keras
import numpy as np
from keras import ops

from keras_compress.quantizers.codes import Codes
from keras_compress.quantizers.quantizer import Quantizer, or_one


@keras.saving.register_keras_serializable(package="keras_compress")
class DynamicTree8(Quantizer):
    """Dynamic tree quantization: 256 values, dense near zero, times `max|w|`.

    A sign bit; then e zero bits give the decimal exponent `10^-e`, a 1 ends them, and the bits left
    bisect [0.1, 1]. As a table: for i = 0..6 the midpoints of the `2^i` equal parts of [0.1, 1],
    times `10^(i - 6)`, with both signs, and 0 and 1. A value goes to the nearest.

    Made for the exchange of gradients and activations between devices, at a quarter of the bytes:
    small values keep their relative precision, which a linear 8-bit grid takes from them, at about
    twice its squared error. As weights it needs a codebook of 256; a .tflite holds the nearest
    int8.

    Args:
        ste: Straight-through gradient, `"identity"` or `"clip"`.

    Raises:
        ValueError: if `ste` is none of these.

    Reference:
        Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2015.

    Example:

    >>> q = DynamicTree8()
    >>> values = q.decode(q.encode([-0.02, 0.0, 0.3, 1.0]))
    >>> [round(float(v), 5) for v in values]
    [-0.01984, 0.0, 0.30391, 1.0]
    """

    gradients = ("identity", "clip")
    bits = 8

    def scales(self, w):
        return or_one(self.max(ops.abs(w)))

    def scale_count(self, shape):
        return 1

    def quantize(self, w, training=None):
        scales = self.scales(w)
        return ops.multiply(scales, ops.take(_table(), self._codes(w, scales)))

    def _codes(self, w, scales):
        table = _table()
        borders = (table[1:] + table[:-1]) / 2
        position = ops.reshape(ops.divide(w, scales), (-1,))
        return ops.reshape(ops.searchsorted(borders, position), ops.shape(w))

    def levels(self, w):
        scale = ops.convert_to_numpy(self.scales(ops.cast(w, "float32"))).reshape(1, 1)
        return scale * _table()

    def encode(self, w):
        w = ops.cast(w, "float32")
        scales = self.scales(w)
        codes = ops.convert_to_numpy(self._codes(w, scales)).astype("uint8")
        return Codes(codes, ops.convert_to_numpy(scales).reshape(-1)[0], values=_table())


@functools.cache
def _table():
    """The 256 values, ascending."""
    positive = []
    for i in range(7):
        ends = np.linspace(0.1, 1.0, 2**i + 1)
        positive.append((ends[1:] + ends[:-1]) / 2 * 10.0 ** (i - 6))
    positive = np.concatenate(positive)
    return np.sort(np.concatenate([-positive, [0.0], positive, [1.0]])).astype("float32")
