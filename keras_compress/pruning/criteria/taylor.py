"""`Taylor`: feature maps by the loss's gradient to them."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.costs import call_terms
from keras_compress.pruning.criteria.criterion import ActivationCriterion


class Taylor(ActivationCriterion):
    """Scores a feature map by how much the loss would change without it, seen from the gradient.

    With the map `z` of a sample, its gradient `g` and `t` the mean of `g z` over the positions,
    the score is the mean over samples of `|t|` (`order=1`), or of `t^2 / 2` (`order=2`, the
    second-order term with the empirical Fisher information as the Hessian: for a net that is
    trained to a minimum, where the first order averages out).

    Args:
        order: 1 or 2.
        flops_weight: What a map pays, after normalization, for each million of floating-point
            operations (two for a multiply-accumulate) that its layer takes to make it; 1e-3 in the
            paper.
        normalize: See `Criterion`.

    Reference:
        Molchanov, Tyree, Karras, Aila, Kautz, "Pruning Convolutional Neural Networks for Resource
        Efficient Transfer Learning Inference", 2017; order 2: Theis, Korshunova, Tejani, Huszar,
        "Faster Gaze Prediction with Dense Networks and Fisher Pruning", 2018.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu", name="hidden")])
    >>> model.add(keras.layers.Dense(2))
    >>> x, y = np.ones((8, 4)), np.zeros((8, 2))
    >>> scores = kc.pruning.criteria.Taylor()(model, "hidden", data=(x, y), loss="mse")
    >>> scores["hidden"].shape
    (3,)
    """

    needs = "labels"
    with_gradients = True

    def __init__(self, order=1, flops_weight=0.0, normalize="l2"):
        super().__init__(normalize)
        self.order = validation.integer("order", order, 1, 2, self)
        self.flops_weight = validation.number("flops_weight", flops_weight, 0, owner=self)

    def __call__(self, model, layers=None, data=None, loss=None, batch_size=64):
        graph = self.open(model)
        scores = super().__call__(graph, layers, data, loss, batch_size)
        if self.flops_weight:
            for part in self.parts(graph, layers):
                scores[part.name] -= self.flops_weight * _megaflops(graph, part)
        return scores

    def update(self, state, maps, gradients=None, targets=None):
        total, count = (0.0, 0) if state is None else state
        change = (maps.astype("float64") * gradients.astype("float64")).mean(1)
        change = np.abs(change) if self.order == 1 else np.square(change) / 2
        return total + change.sum(0), count + len(change)

    def result(self, state):
        total, count = state
        return total / count


def _megaflops(graph, part):
    """Millions of operations for each channel that a producer makes."""
    calls = [call for call in graph.graph.calls if call.operation is part.layer]
    macs = sum(count for call in calls for count, _ in call_terms(graph, call))
    return 2e-6 * macs / len(part.channels)
