"""SparseBasisFactors: a basis of channels, a few filters for each, and their sparse mixtures."""

import math

import numpy as np

from keras_compress.decomposition.depthwise import DepthwiseFactors
from keras_compress.decomposition.factors import Factors, Stage


class SparseBasisFactors(Factors):
    """`K[i, j, s, t] ~ sum_kq p[s, k] f[i, j, k, q] m[k, q, t]`, m to become sparse.

    `p` is a basis of the input channels, and each channel k of it has `rank` filters of its own;
    the columns of both have unit norm. Runs as a 1x1 convolution, a depthwise one with that
    multiplier, and a 1x1 convolution. Fitted by principal components: of the kernel unfolded by
    channel, then of what each channel of the basis is filtered with. The mixture is what a
    `kc.regularizers.SparseGroupLasso` thins out.

    Reference:
        Liu, Wang, Foroosh, Tappen, Pensky, "Sparse Convolutional Neural Networks", 2015.
    """

    form = "sparse_basis"
    equation = "11sk,ijkq,kqt->ijst"
    stages = (Stage("conv"), Stage("depthwise", (0, 1)), Stage("conv"))

    @property
    def rank(self):
        return (self.arrays[1].shape[3],)

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        (filters,) = rank
        return [
            (1, 1, inputs, inputs),
            (height, width, inputs, filters),
            (1, 1, inputs * filters, outputs),
        ]

    @classmethod
    def limits(cls, kernel_shape):
        height, width, _, outputs = kernel_shape
        return (min(height * width, outputs),)

    @classmethod
    def unfoldings(cls, kernel):
        return [list(_by_channel(kernel)[1])]

    @classmethod
    def terms(cls, rank):
        return rank[0]

    @classmethod
    def fit(cls, kernel, rank):
        (filters,) = rank
        basis, rest = _by_channel(kernel)
        left, values, right = np.linalg.svd(rest, full_matrices=False)
        mixtures = values[:, :filters, None] * right[:, :filters]
        shapes = cls.shapes(kernel.shape, rank)
        arrays = (basis, left[..., :filters].transpose(1, 0, 2), mixtures)
        return cls(
            np.ascontiguousarray(array, kernel.dtype).reshape(shape)
            for array, shape in zip(arrays, shapes, strict=True)
        )

    def normalized(self):
        """The same kernel with the columns of both bases at unit norm."""
        basis, filters, mixture = self.arrays
        first = np.linalg.norm(basis[0, 0], axis=0)
        second = np.linalg.norm(filters, axis=(0, 1))
        scale = (first[:, None] * second).reshape(-1, 1).astype(mixture.dtype)
        # A column of zeros has no direction: its mixture is 0 and it stays.
        first, second = (np.where(norms > 0, norms, 1.0) for norms in (first, second))
        arrays = (basis / first, filters / second, mixture * scale)
        return type(self)(
            array.astype(old.dtype) for array, old in zip(arrays, self.arrays, strict=True)
        )

    def operands(self):
        basis, filters, mixture = self.arrays
        return [basis[0, 0], filters, mixture.reshape(*filters.shape[2:], -1)]

    def used(self):
        """Bool vector: which filters (channel by channel) the mixture uses at all."""
        return self.arrays[2].any((0, 1, 3))

    def without(self, gone):
        """The factors without some filters: `DepthwiseFactors`, a term for each that stays.

        Args:
            gone: Bool vector over the filters, channel by channel; not all true.
        """
        basis, filters, mixture = self.arrays
        height, width, channels, each = filters.shape
        stays = np.flatnonzero(~np.asarray(gone))
        return DepthwiseFactors(
            (
                basis[..., stays // each],
                filters.reshape(height, width, channels * each)[..., stays, None],
                mixture[:, :, stays],
            )
        )


def _by_channel(kernel):
    """The basis of channels `(S, S)`, and a matrix (positions, outputs) for each of its columns."""
    height, width, inputs, outputs = kernel.shape
    unfolded = kernel.astype("float64").transpose(2, 0, 1, 3).reshape(inputs, -1)
    # The eigenvectors of the Gram matrix are a whole basis whatever the rank.
    basis = np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1]
    rest = (basis.T @ unfolded).reshape(inputs, math.prod((height, width)), outputs)
    return basis, rest
