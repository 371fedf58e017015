"""`LDA`: feature maps by how well they tell classes apart."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.pooled import PooledCriterion

SCATTERS = ("diagonal", "full")


class LDA(PooledCriterion):
    """Scores a feature map by its share in the linear discriminants of the classes.

    With the scatter of the maps' global averages between classes, `S_b`, and within them, `S_w`:

    - `scatter="diagonal"`: Fisher's ratio `S_b[j, j] / S_w[j, j]` of each map on its own, which
      suits a last convolution, whose maps are nearly uncorrelated;
    - `scatter="full"`: `S_w[j, j] * sum_k e_k v_kj^2` over the eigenvalues `e_k` and eigenvectors
      `v_k` of `S_b v = e S_w v`, scaled to `v^T S_w v = 1`: what a map adds beside the others. For
      uncorrelated maps it is Fisher's ratio again.

    Args:
        scatter: `"diagonal"` or `"full"`.
        normalize: See `Criterion`.

    Raises:
        ValueError: if the targets are not class numbers or one-hot rows of two classes at least.

    Reference:
        Tian, Arbel, Clark, "Efficient Gender Classification Using a Deep LDA-pruned Net", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="fc")])
    >>> model.set_weights([np.array([[1.0]]), np.array([0.0])])
    >>> x, y = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1])
    >>> kc.pruning.criteria.LDA()(model, data=(x, y))["fc"].round(4)
    array([4.])
    """

    needs = "labels"

    def __init__(self, scatter="diagonal", normalize="none"):
        super().__init__(normalize)
        self.scatter = validation.one_of("scatter", scatter, SCATTERS, self)

    def of_pooled(self, pooled, targets):
        within, between = _scatters(pooled, class_numbers(targets, self))
        # A map that is the same number for all samples of a class would have an infinite ratio.
        least = 1e-9 * (np.diag(within) + np.diag(between))
        spread = np.diag(within) + least
        if self.scatter == "diagonal":
            return np.divide(np.diag(between), spread, out=np.zeros(len(spread)), where=spread > 0)
        inverse = np.linalg.pinv(within + np.diag(least), rcond=1e-12, hermitian=True)
        return spread * np.diag(inverse @ between @ inverse)


def class_numbers(targets, owner):
    """Targets as an integer array `(samples,)`.

    Args:
        targets: Array of class numbers `(samples,)` or `(samples, 1)`, or of one-hot rows.
        owner: Object or name that error messages begin with.
    """
    targets = np.asarray(targets)
    one_hot = targets.ndim == 2 and targets.shape[1] > 1
    numbers = targets.argmax(1) if one_hot else targets.reshape(len(targets), -1)[:, 0]
    whole = targets.ndim == 1 or targets.ndim == 2 and (not one_hot or _is_one_hot(targets))
    if not whole or (numbers != numbers.astype(int)).any() or len(np.unique(numbers)) < 2:
        raise ValueError(
            f"{validation.prefix(owner)}targets must be class numbers, or one-hot rows, of two "
            f"classes at least; got the shape {targets.shape}, "
            f"{len(np.unique(numbers))} different."
        )
    return numbers.astype(int)


def _is_one_hot(targets):
    return ((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all()


def _scatters(features, labels):
    """Scatter within and between the classes, divided by the number of samples."""
    means = np.stack([features[labels == label].mean(0) for label in np.unique(labels)])
    _, places = np.unique(labels, return_inverse=True)
    centred, shifts = features - means[places], means[places] - features.mean(0)
    return centred.T @ centred / len(features), shifts.T @ shifts / len(features)
