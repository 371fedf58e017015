"""`APoZ`: neurons by how rarely their ReLU is silent."""

import keras
import numpy as np

from keras_compress.pruning.criteria.criterion import ActivationCriterion

_FUNCTIONS = (keras.activations.relu, keras.activations.relu6)


class APoZ(ActivationCriterion):
    """Scores a neuron by 1 - APoZ: the share of samples and positions where it is not zero.

    APoZ, the average percentage of zeros, means something after a ReLU only, which is looked for
    in the graph, not in the data: the layer's own activation, or a ReLU (or ReLU6) right after the
    layer or its batch normalization. By default the layers that have one are scored; choosing
    another one is an error.

    Args:
        normalize: See `Criterion`.

    Reference:
        Hu, Peng, Tai, Tang, "Network Trimming: A Data-driven Neuron Pruning Approach towards
        Efficient Deep Architectures", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, "relu", name="fc")])
    >>> model.set_weights([np.array([[1.0, 1.0]]), np.array([0.0, -2.0])])
    >>> kc.pruning.criteria.APoZ()(model, data=np.array([[-1.0], [1.0], [2.0], [3.0]]))["fc"]
    array([0.75, 0.25])
    """

    def parts(self, graph, layers=None):
        parts = super().parts(graph, layers)
        rectified = [part for part in parts if self._rectified(graph, part) is not None]
        if layers is not None and len(rectified) < len(parts):
            names = [part.name for part in parts if part not in rectified]
            raise ValueError(
                f"APoZ: after {', '.join(map(repr, names))} comes no ReLU that gives zeros to "
                "count. Leave it out by `layers=`, or take another criterion, such as "
                "ActivationVariance()."
            )
        if not rectified:
            raise ValueError(
                "APoZ: the model has no layer that a ReLU comes after: there are no zeros to "
                "count. Take another criterion, such as ActivationVariance()."
            )
        return rectified

    def value(self, graph, part):
        return self._rectified(graph, part)

    @staticmethod
    def _rectified(graph, part):
        """The last of a producer's feature maps that a ReLU gives, or `None`."""
        maps = reversed(graph.feature_maps(part))
        return next((value for value in maps if _gives_zeros(value.call.operation)), None)

    def update(self, state, maps, gradients=None, targets=None):
        active, count = (0, 0) if state is None else state
        rows = maps.reshape(-1, maps.shape[-1])
        return active + np.count_nonzero(rows, axis=0), count + len(rows)

    def result(self, state):
        active, count = state
        return active / count


def _gives_zeros(operation):
    if isinstance(operation, keras.layers.ReLU):
        return operation.negative_slope == 0
    if type(operation).__name__ in ("Relu", "Relu6"):
        return True
    return any(getattr(operation, "activation", None) is function for function in _FUNCTIONS)
