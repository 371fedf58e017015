"""`SparseGroupLasso`: a penalty under which weights and whole groups of them become zero."""

import keras

from keras_compress import validation
from keras_compress.regularizers.group_lasso import GROUPS, GroupLasso


@keras.saving.register_keras_serializable(package="keras_compress")
class SparseGroupLasso(GroupLasso):
    """Sparse group lasso: `l1 * sum |w| + l2 * sum over groups of ||weights of the group||_2`.

    `GroupLasso(("weight", group), (l1, l2), scale_by_size=False)` by its name in the literature.
    With `kc.callbacks.ProximalGroupLasso()` in `fit` it acts as a proximal step: each weight is
    shrunk by `l1` times the learning rate, then each group by `l2` times it; what does not reach
    that far is exactly zero.

    Args:
        l1: Strength for single weights, number >= 0.
        l2: Strength for groups, number >= 0.
        group: What makes a group of a kernel `(..., inputs, outputs)`: see `GroupLasso`. By default
            `"channel"`, all weights of an input; on a `kc.layers.SparseBasisConv2D` that is one
            filter of the basis.

    Raises:
        ValueError: if a strength is negative, or `group` unknown or one that is no group
            (`"weight"`) or needs a size (`"block"`).

    Reference:
        Liu, Wang, Foroosh, Tappen, Pensky, "Sparse Convolutional Neural Networks", 2015.
        N. Simon, J. Friedman, T. Hastie, R. Tibshirani, "A Sparse-Group Lasso", 2013.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> penalty = kc.regularizers.SparseGroupLasso(l1=1.0, l2=2.0)
    >>> weights = keras.ops.array([[4.0, 5.0], [0.5, 1.5]])
    >>> print(keras.ops.convert_to_numpy(penalty.proximal(weights, step=1.0)).round(3))
    [[1.8 2.4]
     [0.  0. ]]
    """

    def __init__(self, l1=1e-4, l2=1e-4, group="channel"):
        self.l1 = validation.number("l1", l1, 0, owner=self)
        self.l2 = validation.number("l2", l2, 0, owner=self)
        allowed = [name for name in GROUPS if name not in ("weight", "block")]
        self.group = validation.one_of("group", group, allowed, self)
        super().__init__(("weight", group), (self.l1, self.l2), scale_by_size=False)

    def get_config(self):
        return {"l1": self.l1, "l2": self.l2, "group": self.group}
