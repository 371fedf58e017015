"""Factors: a kernel as the product of smaller arrays."""

import dataclasses
import math

import numpy as np

from keras_compress import validation
from keras_compress.decomposition.linalg import squared_spectrum
from keras_compress.decomposition.ranks import resolve_rank


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of running a factorized convolution.

    Attributes:
        kind: `"conv"` (grouped where its kernel reads fewer channels than there are),
            `"depthwise"`, `"scale"` (a factor for each channel), or `"order"`: its array says where
            each channel comes from.
        axes: Spatial axes (0: height, 1: width) along which this step carries the stride and the
            padding; along the others its kernel has size 1.
    """

    kind: str
    axes: tuple = ()


class Factors:
    """A kernel in factored form. Each form is a subclass: `SVDFactors`, `TuckerFactors`, ...

    A form for convolutions keeps its arrays as the kernels of the convolutions it runs as, in
    order (`stages`), so that a layer, an exporter or a list of stock layers needs nothing else.

    A subclass writes `equation`, `shapes`, `limits`, `unfoldings` and `fit`.

    Args:
        arrays: The arrays of the form, in order.
    """

    #: Name of the form, the `form=` of layers and functions.
    form = None
    #: The kernel as an einsum of the arrays; axes of size 1 that only the convolution needs are
    #: written as `1`.
    equation = None
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

    # What a form may write where ranks are more than sizes of sums.

    @classmethod
    def check_rank(cls, kernel_shape, rank, owner=None):
        """Raises `ValueError` where ranks within the limits do not go with a kernel's shape."""

    @classmethod
    def terms(cls, rank):
        """Number of products that an entry of the kernel is the sum of."""
        return math.prod(rank)

    @classmethod
    def orders(cls, kernel_shape, rank):
        """The arrays of the `"order"` stages of a kernel that is fitted to nothing yet."""
        return []

    @classmethod
    def weights(cls, kernel_shape, rank):
        """Number of stored floats, or of those that take as much room."""
        return sum(map(math.prod, cls.shapes(kernel_shape, rank)))

    # What a form may write where its arrays are more than the operands of its equation.

    def operands(self):
        """The arrays as the einsum takes them, each with the entries of one array in its order.

        Arrays that are no operands (orders of channels) are left out.
        """
        terms = self.equation.split("->")[0].split(",")
        floats = [array for array in self.arrays if np.asarray(array).dtype.kind not in "iu"]
        return [
            array.reshape([n for n, axis in zip(array.shape, term, strict=True) if axis != "1"])
            for array, term in zip(floats, terms, strict=True)
        ]

    def unpack(self, kernel):
        """A kernel in the axes that the einsum gives: a permutation of its entries."""
        return kernel

    def pack(self, contracted):
        """The way back of `unpack`."""
        return contracted

    def scaled(self, scale):
        """The factors of a kernel with its output channels multiplied by a vector."""
        return type(self)((*self.arrays[:-1], self.arrays[-1] * scale))

    # What every form gets from it.

    def reconstruct(self):
        """The kernel that the factors stand for."""
        equation = self.equation.replace("1", "")
        return self.pack(np.einsum(equation, *self.operands(), optimize=True))

    @property
    def rank(self):
        """Tuple of the ranks: one, or as many as the form has."""
        return tuple(array.shape[-1] for array in self.arrays[: self.rank_count])

    def params(self):
        """Number of stored values."""
        return sum(array.size for array in self.arrays)

    @classmethod
    def macs(cls, kernel_shape, rank, input_size, output_size):
        """Multiply-accumulates of one sample through the chain of convolutions.

        Args:
            kernel_shape: `(height, width, inputs, outputs)`.
            rank: Tuple of ranks.
            input_size: `(height, width)` of the input.
            output_size: `(height, width)` of the output.
        """
        size, macs = list(input_size), 0
        for stage, shape in zip(cls.stages, cls.shapes(kernel_shape, rank), strict=True):
            for axis in stage.axes:
                size[axis] = output_size[axis]
            if stage.kind != "order":
                macs += math.prod(size) * math.prod(shape)
        return macs

    def error(self, kernel):
        """Relative Frobenius error `||kernel - reconstruct()|| / ||kernel||`."""
        norm = np.linalg.norm(kernel)
        residual = np.linalg.norm(np.asarray(kernel) - self.reconstruct())
        return float(residual / norm) if norm else float(residual)

    @classmethod
    def spectra(cls, kernel):
        """For each rank, a list of `(squared singular values, shape)` of its unfoldings."""
        return [[(squared_spectrum(m), m.shape) for m in one] for one in cls.unfoldings(kernel)]

    @classmethod
    def resolve_rank(cls, rank, kernel, owner=None):
        """Explicit ranks for a kernel: see `resolve_rank` of `kc.decomposition`."""
        ranks = resolve_rank(rank, cls.limits(kernel.shape), lambda: cls.spectra(kernel), owner)
        cls.check_rank(kernel.shape, ranks, owner)
        return ranks

    def __repr__(self):
        return f"{type(self).__name__}(rank={self.rank}, params={self.params()})"


def check_factors(factors, kernel, forms, owner=None):
    """Raises `ValueError` unless `factors` are of one of some forms, and of a kernel's shape.

    Args:
        factors: Anything.
        kernel: Array.
        forms: Names of the forms that the owner can run.
        owner: Whom the error speaks of.
    """
    if not isinstance(factors, Factors) or factors.form not in forms:
        raise ValueError(
            f"{validation.prefix(owner)}`factors` must be what kc.decomposition.decompose gives "
            f"with form={' or '.join(map(repr, forms))}; got {type(factors).__name__}."
        )
    shape = factors.reconstruct().shape
    if shape != np.shape(kernel):
        raise ValueError(
            f"{validation.prefix(owner)}`factors` stand for a kernel of the shape {shape}; the "
            f"layer's is {np.shape(kernel)}. Decompose the kernel of this layer."
        )
