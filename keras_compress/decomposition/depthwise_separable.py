"""DepthwiseSeparableFactors: a kernel as a depthwise convolution and a 1x1 one."""

import numpy as np

from keras_compress.decomposition.factors import Factors, Stage


class DepthwiseSeparableFactors(Factors):
    """`K[i, j, s, t] ~ sum_m d[i, j, s, m] p[s, m, t]`: `rank` filters for each input channel.

    For each input channel this is a matrix `(taps, outputs)` of that rank, so the truncated SVDs
    are the global optimum.

    Reference:
        Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
        Applications", 2017.
    """

    form = "depthwise_separable"
    equation = "ijsm,smt->ijst"
    stages = (Stage("depthwise", (0, 1)), Stage("conv"))

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        return [(height, width, inputs, *rank), (1, 1, inputs * rank[0], outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        height, width, _, outputs = kernel_shape
        return (min(height * width, outputs),)

    @classmethod
    def unfoldings(cls, kernel):
        height, width, inputs, outputs = kernel.shape
        return [list(np.moveaxis(kernel, 2, 0).reshape(inputs, height * width, outputs))]

    @classmethod
    def fit(cls, kernel, rank):
        height, width, inputs, outputs = kernel.shape
        (terms,) = rank
        filters = np.moveaxis(kernel, 2, 0).reshape(inputs, height * width, outputs)
        left, values, right = np.linalg.svd(filters, full_matrices=False)
        roots = np.sqrt(values[:, :terms])
        depthwise = (left[:, :, :terms] * roots[:, None]).transpose(1, 0, 2)
        pointwise = right[:, :terms] * roots[:, :, None]
        return cls(
            (
                depthwise.reshape(height, width, inputs, terms),
                pointwise.reshape(1, 1, inputs * terms, outputs),
            )
        )

    def operands(self):
        depthwise, pointwise = self.arrays
        return [depthwise, pointwise.reshape(*depthwise.shape[2:], -1)]
