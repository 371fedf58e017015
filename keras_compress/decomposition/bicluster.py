"""BiclusterFactors: groups of input and output channels, and a small chain for each pair."""

import math

import numpy as np

from keras_compress import validation
from keras_compress.decomposition.clusters import k_means
from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.tucker import TuckerFactors


class BiclusterFactors(Factors):
    """Tucker-2 of each block of a kernel whose channels are in clusters of equal size.

    k-means puts the input channels into `rank[0]` groups and the output channels into `rank[1]`;
    the block of each pair of groups has its own factors of ranks `rank[2:]`. All blocks run
    together: the inputs put into the order of the groups, a grouped 1x1 convolution, a grouped one
    of the kernel's size, an order that brings together what goes to the same outputs, a grouped 1x1
    convolution that adds it up, and the order of the outputs. With one group of each it is
    `"tucker"`.

    Reference:
        Denton, Zaremba, Bruna, LeCun, Fergus, "Exploiting Linear Structure Within Convolutional
        Networks for Efficient Evaluation", 2014, section 3.3.2 (blocks by two SVDs in turn, here
        by HOOI).
    """

    form = "bicluster"
    equation = "aghp,ijpghq,gqhb->ijgahb"
    stages = (
        Stage("order"),
        Stage("conv"),
        Stage("conv", (0, 1)),
        Stage("order"),
        Stage("conv"),
        Stage("order"),
    )
    rank_count = 4

    @property
    def rank(self):
        inputs, first, core, *_ = self.arrays
        pairs = first.shape[3] // core.shape[2]
        groups = len(inputs) // first.shape[2]
        return groups, pairs // groups, core.shape[2], core.shape[3] // pairs

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        groups, parts, first, second = rank
        pairs = groups * parts
        return [
            (inputs,),
            (1, 1, inputs // groups, pairs * first),
            (height, width, first, pairs * second),
            (pairs * second,),
            (1, 1, groups * second, outputs),
            (outputs,),
        ]

    @classmethod
    def limits(cls, kernel_shape):
        inputs, outputs = TuckerFactors.limits(kernel_shape)
        return (inputs, kernel_shape[3], inputs, outputs)

    @classmethod
    def check_rank(cls, kernel_shape, rank, owner=None):
        *size, inputs, outputs = kernel_shape
        groups, parts, *ranks = rank
        owner = validation.prefix(owner)
        if outputs % parts or (inputs != math.inf and inputs % groups):
            raise ValueError(
                f"{owner}form='bicluster' has groups of equal size: rank[0]={groups} must divide "
                f"the {inputs} input channels, rank[1]={parts} the {outputs} filters."
            )
        limits = TuckerFactors.limits((*size, inputs / groups, outputs // parts))
        if any(value > limit for value, limit in zip(ranks, limits, strict=True)):
            raise ValueError(
                f"{owner}the ranks of a block, rank[2:]={tuple(ranks)}, are larger than it allows: "
                f"{limits}."
            )

    @classmethod
    def unfoldings(cls, kernel):
        raise ValueError(
            "form='bicluster' takes `rank` as four integers: groups of input channels, groups of "
            "filters, and the two ranks of a block, (2, 4, 16, 16) for example."
        )

    @classmethod
    def terms(cls, rank):
        return math.prod(rank[2:])

    @classmethod
    def orders(cls, kernel_shape, rank):
        *_, inputs, outputs = kernel_shape
        return [
            np.arange(inputs, dtype="int32"),
            _by_outputs(rank),
            np.arange(outputs, dtype="int32"),
        ]

    @classmethod
    def fit(cls, kernel, rank):
        height, width, inputs, outputs = kernel.shape
        groups, parts, first, second = rank
        rows = k_means(kernel.transpose(2, 0, 1, 3).reshape(inputs, -1), groups)
        columns = k_means(kernel.reshape(-1, outputs).T, parts)
        ends = np.empty((groups, parts, inputs // groups, first), kernel.dtype)
        cores = np.empty((groups, parts, height, width, first, second), kernel.dtype)
        starts = np.empty((groups, parts, second, outputs // parts), kernel.dtype)
        for g, h in np.ndindex(groups, parts):
            block = kernel[:, :, rows[g]][..., columns[h]]
            u, core, v = TuckerFactors.fit(block, (first, second)).arrays
            ends[g, h], cores[g, h], starts[g, h] = u[0, 0], core, v[0, 0]
        shapes = cls.shapes(kernel.shape, rank)
        return cls(
            (
                rows.ravel().astype("int32"),
                ends.transpose(2, 0, 1, 3).reshape(shapes[1]),
                cores.transpose(2, 3, 4, 0, 1, 5).reshape(shapes[2]),
                _by_outputs(rank),
                starts.transpose(0, 2, 1, 3).reshape(shapes[4]),
                np.argsort(columns.ravel()).astype("int32"),
            )
        )

    def operands(self):
        _, first, core, _, last, _ = self.arrays
        groups, parts, *ranks = self.rank
        return [
            first.reshape(first.shape[2], groups, parts, ranks[0]),
            core.reshape(*core.shape[:3], groups, parts, ranks[1]),
            last.reshape(groups, ranks[1], parts, -1),
        ]

    def pack(self, contracted):
        inputs, outputs = self.arrays[0], self.arrays[-1]
        kernel = contracted.reshape(*contracted.shape[:2], len(inputs), len(outputs))
        return kernel[:, :, np.argsort(inputs)][..., outputs]

    def unpack(self, kernel):
        inputs, outputs = self.arrays[0], self.arrays[-1]
        groups, parts, *_ = self.rank
        ordered = kernel[:, :, inputs][..., np.argsort(outputs)]
        return ordered.reshape(*kernel.shape[:2], groups, -1, parts, len(outputs) // parts)

    def scaled(self, scale):
        *arrays, last, order = self.arrays
        return type(self)((*arrays, last * scale[np.argsort(order)], order))


def _by_outputs(rank):
    """From channels ordered by (inputs, outputs, term) to those by (outputs, inputs, term)."""
    groups, parts, _, second = rank
    places = np.arange(groups * parts * second, dtype="int32").reshape(groups, parts, second)
    return places.transpose(1, 0, 2).ravel()
