"""TuckerFactors: a kernel as a small core between two channel bases."""

import math

import numpy as np

from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.linalg import gram, leading_eigenvectors

_MAX_SWEEPS = 50
# Share of the kernel's energy that a sweep must still gain.
_TOLERANCE = 1e-6


class TuckerFactors(Factors):
    """Tucker-2: `K[i, j, s, t] ~ sum_pq C[i, j, p, q] U[s, p] V[t, q]`.

    Runs as a 1x1 convolution to `rank[0]` channels, a convolution of the kernel's size to
    `rank[1]` channels, and a 1x1 convolution. Fitted by HOSVD, then HOOI; `U` and `V` are
    orthonormal and the core holds all the energy.

    Reference:
        Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power
        Mobile Applications", 2015.
        De Lathauwer, De Moor, Vandewalle, "On the Best Rank-1 and Rank-(R1, ..., RN) Approximation
        of Higher-Order Tensors", 2000 (HOOI).
    """

    form = "tucker"
    equation = "11sp,ijpq,11qt->ijst"
    stages = (Stage("conv", ()), Stage("conv", (0, 1)), Stage("conv", ()))
    rank_count = 2

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        return [(1, 1, inputs, rank[0]), (height, width, *rank), (1, 1, rank[1], outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        height, width, inputs, outputs = kernel_shape
        return (
            min(inputs, height * width * outputs),
            min(outputs, height * width * inputs),
        )

    @classmethod
    def unfoldings(cls, kernel):
        return [[_input_unfolding(kernel)], [kernel.reshape(-1, kernel.shape[-1])]]

    @classmethod
    def fit(cls, kernel, rank):
        return cls._pack(kernel, *hooi(kernel, rank))

    @classmethod
    def hosvd(cls, kernel, rank):
        """The factors that HOOI starts from: each basis by itself, not adapted to the other."""
        bases = (
            leading_eigenvectors(gram(matrix), size)
            for (matrix,), size in zip(cls.unfoldings(kernel), rank, strict=True)
        )
        return cls._pack(kernel, *bases)

    @classmethod
    def _pack(cls, kernel, u, v):
        u, v = u.astype(kernel.dtype), v.astype(kernel.dtype)
        core = _project_inputs(kernel @ v, u)
        return cls((u[None, None], core, v.T[None, None]))


def hooi(kernel, rank):
    """Higher-order orthogonal iteration on the two channel modes, from HOSVD.

    Args:
        kernel: Array `(height, width, inputs, outputs)`.
        rank: `(input rank, output rank)`.

    Returns:
        `(u, v)`: orthonormal bases `(inputs, rank[0])` and `(outputs, rank[1])`.
    """
    inputs, outputs = kernel.shape[2:]
    total = float(np.vdot(kernel, kernel))
    v = leading_eigenvectors(gram(kernel.reshape(-1, outputs)), rank[1])
    kept = -math.inf
    for _ in range(_MAX_SWEEPS):
        narrow = kernel @ v.astype(kernel.dtype)
        u = leading_eigenvectors(gram(_input_unfolding(narrow)), rank[0])
        narrow = _project_inputs(kernel, u.astype(kernel.dtype)).reshape(-1, outputs)
        squares = gram(narrow)
        v = leading_eigenvectors(squares, rank[1])
        before, kept = kept, float(np.sum(v * (squares @ v)))
        # With one side whole, the other side's basis is already the best there is.
        if rank[0] == inputs or rank[1] == outputs or kept - before <= _TOLERANCE * total:
            break
    return u, v


def _input_unfolding(kernel):
    return kernel.transpose(0, 1, 3, 2).reshape(-1, kernel.shape[2])


def _project_inputs(kernel, u):
    return np.einsum("ijst,sp->ijpt", kernel, u, optimize=True)
