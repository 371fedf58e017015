"""The Tucker form of a tensor with any number of axes, every axis with a basis of its own.

`TuckerFactors` keeps the two axes of a convolution window whole, since they run as a convolution;
here no axis is special.

Reference:
    De Lathauwer, De Moor, Vandewalle, "On the Best Rank-1 and Rank-(R1, ..., RN) Approximation of
    Higher-Order Tensors", 2000 (HOSVD, HOOI).
"""

import math

import numpy as np

from keras_compress.decomposition.linalg import gram, leading_eigenvectors

_MAX_SWEEPS = 50
# Share of the tensor's energy that a sweep must still gain.
_TOLERANCE = 1e-6


def unfold(tensor, axis):
    """The tensor as a matrix with one column for each entry of `axis`."""
    return np.moveaxis(tensor, axis, -1).reshape(-1, tensor.shape[axis])


def tucker_limits(shape):
    """Largest useful rank of each axis."""
    size = math.prod(shape)
    return tuple(min(length, size // length) for length in shape)


def fit_tucker(tensor, rank):
    """The nearest tensor in Tucker form that HOOI finds from HOSVD.

    Args:
        tensor: Array.
        rank: One integer for each axis.

    Returns:
        `(core, bases)`: an array of the shape `rank`, and an orthonormal basis `(length, rank)` for
        each axis, in the dtype of `tensor`.
    """
    axes = range(tensor.ndim)
    total = float(np.vdot(tensor, tensor))
    bases = [_basis(unfold(tensor, axis), rank[axis]) for axis in axes]
    kept = -math.inf
    for _ in range(_MAX_SWEEPS):
        for axis in axes:
            bases[axis] = _basis(unfold(_project(tensor, bases, axis), axis), rank[axis])
        core = _project(tensor, bases)
        before, kept = kept, float(np.vdot(core, core))
        if kept - before <= _TOLERANCE * total:
            break
    return core, bases


def tucker_to_tensor(core, bases):
    """The tensor that core and bases stand for."""
    return _project(core, [basis.T for basis in bases])


def _basis(matrix, count):
    return leading_eigenvectors(gram(matrix), count).astype(matrix.dtype)


def _project(tensor, bases, skipped=None):
    """The tensor's coordinates in the bases, but for one axis."""
    axes = [axis for axis in range(tensor.ndim) if axis != skipped]
    # What shrinks the tensor most goes first: the other products are then small.
    for axis in sorted(axes, key=lambda axis: bases[axis].shape[1] / bases[axis].shape[0]):
        tensor = np.moveaxis(np.tensordot(tensor, bases[axis], (axis, 0)), -1, axis)
    return tensor
