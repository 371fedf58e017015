"""Factors: a kernel as the product of smaller arrays."""

import dataclasses

import numpy as np

from keras_compress.decomposition.linalg import squared_spectrum
from keras_compress.decomposition.ranks import resolve_rank


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of running a factorized convolution.

    Attributes:
        kind: `"conv"` or `"depthwise"`.
        axes: Spatial axes (0: height, 1: width) along which this step carries the stride and the
            padding; along the others its kernel has size 1.
    """

    kind: str
    axes: tuple


class Factors:
    """A kernel in factored form. Each form is a subclass: `SVDFactors`, `TuckerFactors`, ...

    A form for convolutions keeps its arrays as the kernels of the convolutions it runs as, in
    order (`stages`), so that a layer, an exporter or a list of stock layers needs nothing else.

    A subclass writes `shapes`, `limits`, `unfoldings`, `fit` and `reconstruct`.

    Args:
        arrays: The arrays of the form, in order.
    """

    #: Name of the form, the `form=` of layers and functions.
    form = None
    #: How the arrays run as convolutions.
    stages = ()
    #: Number of axes of the kernels that the form can hold.
    kernel_ndims = (4,)
    #: Number of ranks: the last axes of the first arrays.
    rank_count = 1

    def __init__(self, arrays):
        self.arrays = tuple(arrays)

    # What a form writes.

    @classmethod
    def shapes(cls, kernel_shape, rank):
        """Shapes of the arrays for a kernel shape and a tuple of ranks."""
        raise NotImplementedError

    @classmethod
    def limits(cls, kernel_shape):
        """Largest useful value of each rank.

        The number of input channels may be `math.inf`: not known yet.
        """
        raise NotImplementedError

    @classmethod
    def unfoldings(cls, kernel):
        """For each rank, the matrices whose spectra bound it: a list of lists."""
        raise NotImplementedError

    @classmethod
    def fit(cls, kernel, rank):
        """Factors nearest to `kernel` in the Frobenius norm, for a tuple of explicit ranks."""
        raise NotImplementedError

    def reconstruct(self):
        """The kernel that the factors stand for."""
        raise NotImplementedError

    # What every form gets from it.

    @property
    def rank(self):
        """Tuple of the ranks: one, or as many as the form has."""
        return tuple(array.shape[-1] for array in self.arrays[: self.rank_count])

    def params(self):
        """Number of stored values."""
        return sum(array.size for array in self.arrays)

    def error(self, kernel):
        """Relative Frobenius error `||kernel - reconstruct()|| / ||kernel||`."""
        norm = np.linalg.norm(kernel)
        residual = np.linalg.norm(np.asarray(kernel) - self.reconstruct())
        return float(residual / norm) if norm else float(residual)

    @classmethod
    def resolve_rank(cls, rank, kernel, owner=None):
        """Explicit ranks for a kernel: see `resolve_rank` of `kc.decomposition`."""

        def spectra():
            return [[(squared_spectrum(m), m.shape) for m in one] for one in cls.unfoldings(kernel)]

        return resolve_rank(rank, cls.limits(kernel.shape), spectra, owner)

    def __repr__(self):
        return f"{type(self).__name__}(rank={self.rank}, params={self.params()})"
