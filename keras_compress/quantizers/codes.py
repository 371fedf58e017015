"""Codes: a quantised tensor as integers and the scales that give its values back."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """Stored form of a quantised tensor.

    The values are `scale * ints` where `values` is `None` (a uniform grid: what the integer kernels
    of LiteRT compute with), else `scale * values[ints]` (a codebook).

    Args:
        ints: Integer array of the shape of the tensor.
        scale: float32 array: a scalar, or one entry for each index of `axis`.
        axis: Axis that `scale` (and a matrix of `values`) runs along, or `None` for one scale.
        values: `None`, a float32 vector of the values that `ints` index, or a matrix with one such
            vector for each index of `axis`.
    """

    ints: np.ndarray
    scale: np.ndarray
    axis: int | None = None
    values: np.ndarray | None = None

    def decode(self):
        """Returns the float32 array that the codes stand for."""
        scale = np.asarray(self.scale, "float32")
        shape = [1] * self.ints.ndim
        if self.axis is not None:
            shape[self.axis] = -1
            scale = scale.reshape(shape) if scale.ndim else scale
        if self.values is None:
            values = self.ints.astype("float32")
        elif self.values.ndim == 1:
            values = self.values[self.ints]
        else:
            values = self.values[np.arange(len(self.values)).reshape(shape), self.ints]
        return (values * scale).astype("float32")
