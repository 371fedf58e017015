"""`Oracle`: feature maps by the loss without them."""

import numpy as np

from keras_compress.pruning.criteria.criterion import ActivationCriterion
from keras_compress.pruning.criteria.observer import Observer, sample_loss


class Oracle(ActivationCriterion):
    """Scores a feature map by how much the mean loss changes when it is set to zero.

    One pass over the data for each channel: the measure of other criteria on small nets, not a
    criterion for large ones.

    Args:
        signed: Whether a map that the loss is lower without gets a negative score, and so goes
            first. By default the magnitude of the change counts.
        normalize: See `Criterion`.

    Reference:
        Molchanov, Tyree, Karras, Aila, Kautz, "Pruning Convolutional Neural Networks for Resource
        Efficient Transfer Learning Inference", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu", name="hidden")])
    >>> model.add(keras.layers.Dense(2))
    >>> x, y = np.ones((8, 4)), np.zeros((8, 2))
    >>> kc.pruning.criteria.Oracle()(model, "hidden", data=(x, y), loss="mse")["hidden"].shape
    (3,)
    """

    needs = "labels"

    def __init__(self, signed=False, normalize="none"):
        super().__init__(normalize)
        self.signed = bool(signed)

    def score(self, graph, parts, samples, loss):
        observer = Observer(graph.graph, [self.value(graph, part) for part in parts])
        loss = sample_loss(graph.model, loss, self)
        ones = [_along(part, np.ones(len(part.channels))) for part in parts]
        totals, count = [np.zeros(len(part.channels)) for part in parts], 0
        for inputs, targets in samples:

            def total(factors, batch=(inputs, targets)):
                return observer.losses(*batch, loss, factors).astype("float64").sum()

            whole = total(ones)
            count += len(targets)
            for place, part in enumerate(parts):
                for channel in range(len(part.channels)):
                    without = np.ones(len(part.channels))
                    without[channel] = 0
                    factors = [*ones[:place], _along(part, without), *ones[place + 1 :]]
                    totals[place][channel] += total(factors) - whole
        changes = [total / count for total in totals]
        return changes if self.signed else [np.abs(change) for change in changes]


def _along(part, factors):
    """Factors of a producer's channels in a shape that broadcasts to its feature map."""
    rank = len(part.value.shape)
    return factors.astype("float32").reshape([-1 if a == part.axis else 1 for a in range(rank)])
