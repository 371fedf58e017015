"""`InboundVariance`: the inputs of each filter by how much their contribution varies."""

import math

import keras
import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.criterion import Criterion
from keras_compress.pruning.criteria.moments import Moments
from keras_compress.pruning.criteria.observer import Observer
from keras_compress.pruning.criteria.reader_criterion import is_linear, lowered_readers
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion

_GRANULARITIES = ("weight", "channel")


class InboundVariance(WeightCriterion):
    """Scores pairs of an input channel i and a filter j by how much `K[:, :, i, j] * x_i` varies.

    Of the contribution of a channel to a filter the norm over the positions is taken, sample by
    sample; the score is its variance over the samples. For Dense layers and convolutions.

    Args:
        granularity: `"weight"`: every weight of a pair has the pair's score, for masks: inbound
            pruning keeps a few inputs of each filter. `"channel"`: the sum over the filters that
            read a channel, for `kc.pruning.select` and `prune_channels`.
        normalize: See `Criterion`.

    Reference:
        Polyak, Wolf, "Channel-level Acceleration of Deep Face Representations", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="fc")])
    >>> model.set_weights([np.array([[2.0], [5.0]]), np.zeros(1)])
    >>> x = np.array([[1.0, 1.0], [3.0, 1.0]])
    >>> kc.pruning.criteria.InboundVariance()(model, data=x)["fc/kernel"]
    array([[4.],
           [0.]])
    """

    needs = "data"

    def __init__(self, granularity="weight", normalize="none"):
        super().__init__(normalize)
        self.granularity = validation.one_of("granularity", granularity, _GRANULARITIES, self)

    def open(self, model):
        return self._base.open(self, model)

    def parts(self, graph, layers=None):
        parts = self._base.parts(self, graph, layers)
        return parts if layers is not None else [p for p in parts if self.applies(p)]

    @property
    def _base(self):
        """What says which parts there are: kernels, or layers that read channels."""
        return WeightCriterion if self.granularity == "weight" else Criterion

    def applies(self, kernel):
        return is_linear(kernel)

    def score(self, graph, parts, samples, loss):
        lowered = lowered_readers(graph, parts, self)
        observer = Observer(graph.graph, [value for one in lowered for value in one.inputs])
        arrays = [keras.ops.convert_to_numpy(part.variable) for part in parts]
        moments = [Moments() for _ in parts]
        for inputs, _ in samples:
            tensors = iter(observer.activations(inputs))
            for one, array, moment in zip(lowered, arrays, moments, strict=True):
                for _ in one.inputs:
                    for patches in one.patches(next(tensors)):
                        moment.update(_contributions(one, array, patches))
        scores = []
        for one, moment in zip(lowered, moments, strict=True):
            if self.granularity == "channel":
                (variance,) = moment.variance
                scores.append(variance.sum(-1))
            else:
                scores.append(one.from_matrices(np.tile(moment.variance, (1, _taps(one), 1))))
        return scores


def _contributions(lowered, kernel, patches):
    """Norms over the positions, `(samples, groups, inputs, outputs)`."""
    taps = _taps(lowered)
    matrices = lowered.to_matrices(kernel.astype("float64"))
    matrices = matrices.reshape(len(matrices), taps, -1, matrices.shape[-1])
    split = patches.reshape(*patches.shape[:-1], taps, -1)
    # |P k|^2 = k^T (P^T P) k: no pair's own feature map is made.
    rows = np.moveaxis(split, -1, 2)
    products = np.swapaxes(rows, -1, -2) @ rows
    squares = (
        np.einsum("gsitu,guio->gstio", products, matrices) * np.expand_dims(matrices, 1)
    ).sum(2)
    return np.sqrt(np.maximum(squares, 0)).swapaxes(0, 1)


def _taps(lowered):
    return math.prod(lowered.shape[:-2])
