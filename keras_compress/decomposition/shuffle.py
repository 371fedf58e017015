"""ShuffleFactors: grouped 1x1, channel shuffle, depthwise and grouped 1x1 convolution."""

import numpy as np

from keras_compress.decomposition.factors import Factors
from keras_compress.decomposition.separable_basis import alternating_least_squares


class ShuffleFactors(Factors):
    """`K[i, j, (p, a), (q, b)] ~ sum_c u[p, a, q, c] d[i, j, p, q, c] v[q, c, p, b]`.

    Inputs come in groups p, outputs in groups q. With `groups^2 * rank` channels in the middle, the
    shuffle gives each output group `rank` of them from each input group: each of the `groups^2`
    blocks of the kernel is a sum of `rank` outer products of its own, fitted by alternating least
    squares.

    Reference:
        Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
        Mobile Devices", 2018.
    """

    form = "shuffle"
    equation = "paqc,ijpqc,qcpb->ijpaqb"

    @classmethod
    def fit(cls, kernel, rank, groups):
        """As `Factors.fit`, for a number of groups that divides inputs and outputs."""
        height, width, inputs, outputs = kernel.shape
        blocks = kernel.reshape(height * width, groups, inputs // groups, groups, -1)
        blocks = blocks.transpose(1, 3, 0, 2, 4).reshape(groups**2, *blocks.shape[::2])
        d, u, v = alternating_least_squares(blocks, *rank)
        pairs = (groups, groups)
        u, d, v = (array.reshape(*pairs, *array.shape[1:]) for array in (u, d, v))
        return cls(
            (
                np.ascontiguousarray(u.transpose(0, 2, 1, 3)),
                np.ascontiguousarray(d.transpose(2, 0, 1, 3)).reshape(height, width, *pairs, *rank),
                np.ascontiguousarray(v.transpose(1, 3, 0, 2)),
            )
        )

    def unpack(self, kernel):
        groups = len(self.arrays[0])
        height, width, inputs, outputs = kernel.shape
        shape = (height, width, groups, inputs // groups, groups, outputs // groups)
        return kernel.reshape(shape)

    def pack(self, contracted):
        height, width, p, a, q, b = contracted.shape
        return contracted.reshape(height, width, p * a, q * b)

    def kernels(self):
        """Kernels of the three convolutions, in order, as Keras has them."""
        u, d, v = self.arrays
        height, width = d.shape[:2]
        # After the shuffle a middle channel's place is (q, c, p), before it (p, q, c).
        return (
            u.transpose(1, 0, 2, 3).reshape(1, 1, u.shape[1], -1),
            d.transpose(0, 1, 3, 4, 2).reshape(height, width, -1, 1),
            v.transpose(1, 2, 0, 3).reshape(1, 1, v.shape[1] * v.shape[2], -1),
        )
