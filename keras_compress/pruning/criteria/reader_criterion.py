"""`ReaderCriterion`: input channels by what the layer that reads them would miss."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.contributions import Contributions
from keras_compress.pruning.criteria.criterion import Criterion
from keras_compress.pruning.criteria.lowered import LoweredKernel
from keras_compress.pruning.criteria.patches import PatchSampler
from keras_compress.pruning.prunable import prunable_kernels
from keras_compress.pruning.surgery import FIXED

_LAYERS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


class ReaderCriterion(Criterion):
    """Base of criteria that put the input channels of a layer in an order of removal.

    Scores rise strictly in that order, so that a choice of any number of channels of one layer is
    the one of the method. Scored are Dense layers and convolutions with inputs that may go; other
    layers are left out. A subclass writes `removal`.

    Args:
        images: Number of samples that patches are taken from, drawn from the data.
        positions: Number of output positions of each sample.
        seed: Of the draws.
        normalize: See `Criterion`.
    """

    granularity = "channel"
    needs = "data"

    def __init__(self, images=256, positions=10, seed=0, normalize="none"):
        super().__init__(normalize)
        self.images = validation.positive_int("images", images, self)
        self.positions = validation.positive_int("positions", positions, self)
        self.seed = validation.seed(seed, self)

    def parts(self, graph, layers=None):
        parts = super().parts(graph, layers)
        chosen = [p for p in parts if is_linear(p) and (p.channels != FIXED).any()]
        if not chosen:
            raise ValueError(
                f"{type(self).__name__}: none of the layers "
                f"{', '.join(repr(part.name) for part in parts)} is a Dense layer or a convolution "
                "that reads channels which may go. Scored are the layers that read channels, not "
                "those that make them; choose others by `layers=`."
            )
        return chosen

    def score(self, graph, parts, samples, loss):
        sampler = PatchSampler(samples, self.images, self.positions, self.seed, self)
        lowered = lowered_readers(graph, parts, self)
        contributions = [
            Contributions(kernel_matrix(one, part), part.channels)
            for one, part in zip(lowered, parts, strict=True)
        ]
        for index, (rows,) in sampler.rows(graph.graph, lowered):
            contributions[index].update(rows)
        return [self._scores(one) for one in contributions]

    def _scores(self, contributions):
        free = contributions.free
        products = contributions.products()[np.ix_(free, free)]
        # Shares of what the channels give together, so that layers can be compared.
        total = products.sum()
        order, costs = self.removal(products / total if total > 0 else products)
        scores = scores_of_order(order, costs)
        # What must stay ranks with what would go last.
        every = np.full(len(free), scores.max())
        every[free] = scores
        return every[contributions.columns]

    def removal(self, products):
        """The order in which channels go.

        Args:
            products: float64 array `(channels, channels)`: inner products of their contributions,
                divided by the squared norm of the sum of all.

        Returns:
            `(order, costs)`: the channels, the first to go first, and a cost of each removal.
        """
        raise NotImplementedError


def scores_of_order(order, costs):
    """Scores that rise strictly in the order of removal.

    Args:
        order: The channels, the first to go first.
        costs: A cost of each removal, in that order.
    """
    costs = np.maximum.accumulate(costs)
    scores = np.empty(len(order))
    # No ties: what goes later has the higher score.
    scores[order] = costs + np.arange(len(costs)) * 1e-9 * max(costs[-1], 1e-9)
    return scores


def is_linear(reader):
    """Whether a `Consumer` is a Dense layer or a convolution that mixes all its inputs."""
    return isinstance(reader.layer, _LAYERS)


def lowered_readers(graph, readers, owner):
    """The `LoweredKernel`s of some `Consumer`s of a `ChannelGraph`."""
    kernels = {id(kernel.variable): kernel for kernel in prunable_kernels(graph.model)}
    return [
        LoweredKernel(kernels[id(reader.variable)], graph.graph.calls, owner) for reader in readers
    ]


def kernel_matrix(lowered, part):
    """The kernel of a `Consumer` as a float64 array `(inputs, outputs)`."""
    kernel = keras.ops.convert_to_numpy(part.variable).astype("float64")
    (matrix,) = lowered.to_matrices(kernel)
    return matrix
