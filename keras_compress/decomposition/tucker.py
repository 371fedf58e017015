"""TuckerFactors: a kernel as a small core between two channel bases."""

import math

import numpy as np

from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.linalg import gram, leading_eigenvectors, right_basis

_MAX_SWEEPS = 50
# Of orthogonal iteration, for each basis in each sweep.
_STEPS = 2
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
    height, width, inputs, outputs = kernel.shape
    total = float(np.vdot(kernel, kernel))
    v = right_basis(kernel.reshape(-1, outputs), rank[1])
    u = right_basis(_input_unfolding(kernel @ v.astype(kernel.dtype)), rank[0])
    # The best bases of a matrix are those of its SVD; and with one side whole, the other side's.
    is_best = height == width == 1 or rank[1] == outputs
    if not is_best:
        v = right_basis(
            _project_inputs(kernel, u.astype(kernel.dtype)).reshape(-1, outputs), rank[1]
        )
        is_best = rank[0] == inputs
    kept = -math.inf
    for _ in range(0 if is_best else _MAX_SWEEPS):
        u, _ = _improved(u, _input_unfolding(kernel @ v.astype(kernel.dtype)))
        before = kept
        v, kept = _improved(v, _project_inputs(kernel, u.astype(kernel.dtype)).reshape(-1, outputs))
        if kept - before <= _TOLERANCE * total:
            break
    return u, v


def _improved(basis, matrix):
    """A basis turned towards the leading right singular vectors, and the energy in it.

    Steps of orthogonal iteration never lose energy, and from a good basis on they gain in a sweep
    what an eigendecomposition would, at a fraction of its time.
    """
    squares = gram(matrix)
    for _ in range(_STEPS):
        basis = np.linalg.qr(squares @ basis)[0]
    return basis, float(np.sum(basis * (squares @ basis)))


def _input_unfolding(kernel):
    return kernel.transpose(0, 1, 3, 2).reshape(-1, kernel.shape[2])


def _project_inputs(kernel, u):
    return np.einsum("ijst,sp->ijpt", kernel, u, optimize=True)
