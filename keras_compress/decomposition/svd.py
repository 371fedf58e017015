"""SVDFactors: a kernel as the product of two matrices."""

import math

from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.linalg import truncated_svd


class SVDFactors(Factors):
    """`W[n, t] ~ sum_r A[n, r] B[r, t]`, the best rank-r matrix.

    A convolution kernel is unfolded to `(height * width * c_in, c_out)` and runs as a convolution
    of the same size to `rank` channels, then a 1x1 convolution.

    Reference:
        Eckart, Young, "The approximation of one matrix by another of lower rank", 1936.
        Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient
        Evaluation", 2014.
    """

    form = "svd"
    equation = "nr,rt->nt"
    stages = (Stage("conv", (0, 1)), Stage("conv", ()))
    kernel_ndims = (2, 4)

    @classmethod
    def shapes(cls, kernel_shape, rank):
        *inputs, outputs = kernel_shape
        return [(*inputs, *rank), (*(1 for _ in inputs[:-1]), *rank, outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        return (min(math.prod(kernel_shape[:-1]), kernel_shape[-1]),)

    @classmethod
    def unfoldings(cls, kernel):
        return [[kernel.reshape(-1, kernel.shape[-1])]]

    @classmethod
    def fit(cls, kernel, rank):
        factors = truncated_svd(kernel.reshape(-1, kernel.shape[-1]), *rank)
        shapes = cls.shapes(kernel.shape, rank)
        return cls(f.reshape(shape) for f, shape in zip(factors, shapes, strict=True))

    def operands(self):
        return [array.reshape(-1, array.shape[-1]) for array in self.arrays]

    def unpack(self, kernel):
        return kernel.reshape(-1, kernel.shape[-1])

    def pack(self, contracted):
        return contracted.reshape(*self.arrays[0].shape[:-1], -1)
