"""`Entropy`: feature maps by how much they tell samples apart."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.pooled import PooledCriterion


class Entropy(PooledCriterion):
    """Scores a feature map by the entropy of its global average over the samples.

    The averages are put in a histogram of equal bins between the least and the largest one;
    `H = -sum p log p` (natural logarithm), from 0 for a constant map to `log(bins)`.

    Args:
        bins: Number of bins; take fewer than there are samples.
        normalize: See `Criterion`.

    Reference:
        Luo, Wu, "An Entropy-based Pruning Method for CNN Compression", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, name="fc")])
    >>> model.set_weights([np.array([[1.0, 0.0]]), np.array([0.0, 3.0])])
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> kc.pruning.criteria.Entropy(bins=4)(model, data=x)["fc"].round(4)
    array([1.3863, 0.    ])
    """

    def __init__(self, bins=100, normalize="none"):
        super().__init__(normalize)
        self.bins = validation.positive_int("bins", bins, self)

    def of_pooled(self, pooled, targets):
        return np.array([self._entropy(values) for values in pooled.T])

    def _entropy(self, values):
        # Rounding alone must not look like a spread.
        if np.ptp(values) <= 1e-6 * np.abs(values).max():
            return 0.0
        counts, _ = np.histogram(values, self.bins)
        shares = counts[counts > 0] / len(values)
        return float(-(shares * np.log(shares)).sum())
