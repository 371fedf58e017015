"""`ActivationVariance`: feature maps by how much they vary."""

from keras_compress.pruning.criteria.criterion import ActivationCriterion
from keras_compress.pruning.criteria.moments import Moments


class ActivationVariance(ActivationCriterion):
    """Scores a feature map by its variance over samples and positions.

    A map that hardly varies is nearly a constant, whatever its size. The "reduce" criterion of
    `kc.pruning.reduce_and_reuse`.

    Args:
        normalize: See `Criterion`.

    Reference:
        Polyak, Wolf, "Channel-level Acceleration of Deep Face Representations", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1.0, 0.0], [0.0, 3.0]])])
    >>> x = np.array([[-1.0, -1.0], [1.0, 1.0]])
    >>> [scores] = kc.pruning.criteria.ActivationVariance()(model, data=x).values()
    >>> scores.tolist()
    [1.0, 9.0]
    """

    def update(self, state, maps, gradients=None, targets=None):
        state = Moments() if state is None else state
        state.update(maps.reshape(-1, maps.shape[-1]))
        return state

    def result(self, state):
        return state.variance
