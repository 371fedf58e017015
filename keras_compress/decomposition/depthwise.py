"""DepthwiseFactors: a depthwise convolution between two 1x1 convolutions."""

import numpy as np

from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.separable_basis import alternating_least_squares


class DepthwiseFactors(Factors):
    """`K[i, j, s, t] ~ sum_r c[s, r] f[i, j, r] d[r, t]`: CP with the window left whole.

    Runs as a 1x1 convolution to `rank` channels, a depthwise one, and a 1x1 convolution. Fitted by
    alternating least squares. What remains of `"sparse_basis"` without its unused filters has this
    form, too.

    Reference:
        Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned
        CP-Decomposition", 2014 (there with the window split).
    """

    form = "depthwise"
    equation = "11sr,ijr1,11rt->ijst"
    stages = (Stage("conv"), Stage("depthwise", (0, 1)), Stage("conv"))

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        (terms,) = rank
        return [(1, 1, inputs, terms), (height, width, terms, 1), (1, 1, terms, outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        height, width, inputs, outputs = kernel_shape
        window = height * width
        return (min(window * inputs, window * outputs, inputs * outputs),)

    @classmethod
    def unfoldings(cls, kernel):
        # As for CP, each is a bound.
        height, width, inputs, outputs = kernel.shape
        matrix = kernel.reshape(-1, outputs)
        return [
            [
                matrix,
                kernel.reshape(height * width, -1).T,
                kernel.transpose(0, 1, 3, 2).reshape(-1, inputs),
            ]
        ]

    @classmethod
    def fit(cls, kernel, rank):
        height, width, inputs, outputs = kernel.shape
        tensor = kernel.reshape(height * width, inputs, outputs).transpose(1, 0, 2)
        channels, window, mixture = (f[0] for f in alternating_least_squares(tensor[None], *rank))
        shapes = cls.shapes(kernel.shape, rank)
        arrays = (channels, window, mixture.T)
        return cls(
            np.ascontiguousarray(array, kernel.dtype).reshape(shape)
            for array, shape in zip(arrays, shapes, strict=True)
        )
