"""MonochromaticFactors: filters that each look at one of a few colours."""

import numpy as np

from keras_compress import validation
from keras_compress.decomposition.clusters import equal_clusters
from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.linalg import leading_eigenvectors


class MonochromaticFactors(Factors):
    """`K[i, j, s, t] ~ u[s, c(t)] v[i, j, t]`, with `c(t)` one of `rank` colours.

    For the first layer, whose filters look at three channels. Runs as a 1x1 convolution to the
    colours and a depthwise one, whose outputs are then put into the filters' order. The filters are
    in clusters of equal size; a filter's gain in a cluster is the energy that its colour keeps.

    Reference:
        Denton, Zaremba, Bruna, LeCun, Fergus, "Exploiting Linear Structure Within Convolutional
        Networks for Efficient Evaluation", 2014, section 3.3.1.
    """

    form = "monochromatic"
    equation = "11sc,ijcm->ijscm"
    stages = (Stage("conv"), Stage("depthwise", (0, 1)), Stage("order"))

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        (colors,) = rank
        each = outputs // colors
        return [(1, 1, inputs, colors), (height, width, colors, each), (outputs,)]

    @classmethod
    def limits(cls, kernel_shape):
        return (kernel_shape[-1],)

    @classmethod
    def check_rank(cls, kernel_shape, rank, owner=None):
        if kernel_shape[-1] % rank[0]:
            raise ValueError(
                f"{validation.prefix(owner)}form='monochromatic' has colours for equally many "
                f"filters each: rank={rank[0]} must divide the {kernel_shape[-1]} filters."
            )

    @classmethod
    def unfoldings(cls, kernel):
        raise ValueError(
            "form='monochromatic' has no singular values that would say how many colours are "
            f"enough: give `rank` as an integer that divides the {kernel.shape[-1]} filters."
        )

    @classmethod
    def terms(cls, rank):
        return 1

    @classmethod
    def orders(cls, kernel_shape, rank):
        return [np.arange(kernel_shape[-1], dtype="int32")]

    @classmethod
    def fit(cls, kernel, rank):
        height, width, inputs, outputs = kernel.shape
        (colors,) = rank
        # A matrix for each filter: channels x positions.
        filters = kernel.reshape(-1, inputs, outputs).transpose(2, 1, 0).astype("float64")
        squares = filters @ filters.transpose(0, 2, 1)

        def centre(part):
            return leading_eigenvectors(squares[part].sum(0), 1)[:, 0]

        def gains(centres):
            centres = np.array(centres)
            return np.einsum("cs,tsr,cr->tc", centres, squares, centres, optimize=True)

        members, centres = equal_clusters(outputs, colors, centre, gains)
        spatial = np.einsum("cs,cmsn->ncm", np.array(centres), filters[members], optimize=True)
        return cls(
            (
                np.array(centres, kernel.dtype).T[None, None],
                spatial.reshape(height, width, *members.shape).astype(kernel.dtype),
                np.argsort(members.ravel()).astype("int32"),
            )
        )

    def pack(self, contracted):
        order = self.arrays[2]
        return contracted.reshape(*contracted.shape[:3], len(order))[..., order]

    def unpack(self, kernel):
        shape = (*kernel.shape[:3], *self.arrays[1].shape[2:])
        return kernel[..., np.argsort(self.arrays[2])].reshape(shape)

    def scaled(self, scale):
        colors, spatial, order = self.arrays
        scale = scale[np.argsort(order)].reshape(spatial.shape[2:])
        return type(self)((colors, spatial * scale, order))
