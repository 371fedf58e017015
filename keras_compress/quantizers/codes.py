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
        axis: Axis that `scale` runs along, or `None` for one scale.
        values: float32 vector of the values that `ints` index, or `None`.
    """

    ints: np.ndarray
    scale: np.ndarray
    axis: int | None = None
    values: np.ndarray | None = None
