"""SpatialChannelFactors: a vertical, a horizontal and a 1x1 convolution."""

from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.linalg import truncated_svd
from keras_compress.decomposition.spatial import SpatialFactors
from keras_compress.decomposition.svd import SVDFactors


class SpatialChannelFactors(Factors):
    """`K[i, j, s, t] ~ sum_kr v[i, s, k] h[j, k, r] q[r, t]`: the 3-d form of Zhang et al.

    The filters are mixtures of `rank[1]` filters ("channel"), which run as a vertical and a
    horizontal convolution with `rank[0]` channels between them ("spatial").

    Reference:
        Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and
        Detection", 2016, section 2.5.
    """

    form = "spatial_channel"
    equation = "i1sk,1jkr,11rt->ijst"
    stages = (Stage("conv", (0,)), Stage("conv", (1,)), Stage("conv"))
    rank_count = 2

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        return [(height, 1, inputs, rank[0]), (1, width, *rank), (1, 1, rank[1], outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        return (*SpatialFactors.limits(kernel_shape), *SVDFactors.limits(kernel_shape))

    @classmethod
    def unfoldings(cls, kernel):
        return [*SpatialFactors.unfoldings(kernel), *SVDFactors.unfoldings(kernel)]

    @classmethod
    def fit(cls, kernel, rank):
        filters, mixture = truncated_svd(kernel.reshape(-1, kernel.shape[-1]), rank[1])
        filters = filters.reshape(*kernel.shape[:-1], rank[1])
        terms = min(rank[0], *SpatialFactors.limits(filters.shape))
        vertical, horizontal = SpatialFactors.fit(filters, (terms,)).arrays
        return cls((vertical, horizontal, mixture[None, None]))
