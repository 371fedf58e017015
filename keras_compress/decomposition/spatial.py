"""SpatialFactors: a kernel as a vertical, then a horizontal convolution."""

from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.linalg import truncated_svd


class SpatialFactors(Factors):
    """`K[i, j, s, t] ~ sum_k v[i, s, k] h[j, k, t]`: (height x 1) to `rank` channels, (1 x width).

    With the kernel unfolded to `((i, s), (j, t))` this is a matrix of rank k, so the truncated SVD
    is the global optimum (Tai); `v` and `h` have equal norm for each k.

    Reference:
        Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank
        Expansions", 2014 (scheme 2).
        Tai, Xiao, Wang, E, "Convolutional Neural Networks with Low-rank Regularization", 2015.
    """

    form = "spatial"
    equation = "i1sk,1jkt->ijst"
    stages = (Stage("conv", (0,)), Stage("conv", (1,)))

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        return [(height, 1, inputs, *rank), (1, width, *rank, outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        height, width, inputs, outputs = kernel_shape
        return (min(height * inputs, width * outputs),)

    @classmethod
    def unfoldings(cls, kernel):
        height, width, inputs, outputs = kernel.shape
        return [[kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)]]

    @classmethod
    def fit(cls, kernel, rank):
        height, width, inputs, outputs = kernel.shape
        left, right = truncated_svd(cls.unfoldings(kernel)[0][0], *rank)
        vertical = left.reshape(height, 1, inputs, *rank)
        horizontal = right.reshape(*rank, width, outputs).transpose(1, 0, 2)[None]
        return cls((vertical, horizontal))
