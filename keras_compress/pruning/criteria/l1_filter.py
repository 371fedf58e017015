"""`L1Filter`: filters by the norm of their weights."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.criterion import KernelCriterion


class L1Filter(KernelCriterion):
    """Scores filters by the sum of the magnitudes of their weights.

    Args:
        order: 1 for the sum of magnitudes, 2 for the Euclidean norm.
        normalize: See `Criterion`.

    Reference:
        Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, name="conv")])
    >>> model.add(keras.layers.GlobalAveragePooling2D())
    >>> model.add(keras.layers.Dense(2, name="logits"))
    >>> kc.pruning.criteria.L1Filter()(model, layers="conv")["conv"].shape
    (4,)
    """

    def __init__(self, order=1, normalize="none"):
        super().__init__(normalize)
        self.order = validation.integer("order", order, 1, 2, self)

    def of_kernel(self, rows):
        return np.linalg.norm(rows, self.order, axis=1)
