"""GridQuantizer: base of quantizers whose levels are integers times a step."""

import keras
import numpy as np
from keras import ops

from keras_compress.quantizers.codes import Codes
from keras_compress.quantizers.quantizer import Quantizer


@keras.saving.register_keras_serializable(package="keras_compress")
class GridQuantizer(Quantizer):
    """Base of uniform quantizers: `scale * integers`.

    A subclass writes `limits`, `integers` and `bits`, and either `step` (a grid that does not
    depend on the tensor) or `scales` (one that does).

    Args:
        ste: See `Quantizer`.
        axis: See `Quantizer`.
    """

    #: Distance of neighbouring integers' values, or `None` if `scales` finds it in the tensor.
    step = None

    @property
    def limits(self):
        """Smallest and largest of the integers."""
        raise NotImplementedError

    @property
    def grid(self):
        """The integers that a value can become, ascending."""
        low, high = self.limits
        return np.arange(low, high + 1)

    def integers(self, w, scales, training=None):
        """Returns the integers of a float32 tensor, as float32.

        Args:
            w: Tensor.
            scales: What `scales(w)` gave.
            training: See `Quantizer`.
        """
        raise NotImplementedError

    def scales(self, w):
        if self.step is None:
            raise NotImplementedError
        return ops.full([1] * len(w.shape), self.step, dtype="float32")

    def scale_count(self, shape):
        return self._groups(shape) if self.step is None else 0

    def quantize(self, w, training=None):
        scales = self.scales(w)
        return ops.multiply(scales, self.integers(w, scales, training))

    def encode(self, w):
        w = ops.cast(w, "float32")
        scales = self.scales(w)
        low, high = self.limits
        dtypes = (np.int8, np.int16, np.int32)
        dtype = next(d for d in dtypes if np.iinfo(d).min <= low and high <= np.iinfo(d).max)
        ints = ops.convert_to_numpy(self.integers(w, scales)).astype(dtype)
        scales = ops.convert_to_numpy(scales).reshape(-1)
        if self.step is not None or self.axis is None:
            return Codes(ints, scales[0])
        return Codes(ints, scales, axis=self.axis % ints.ndim)

    def levels(self, w):
        scales = ops.convert_to_numpy(self.scales(ops.cast(w, "float32"))).reshape(-1, 1)
        return scales * self.grid.astype("float32")
