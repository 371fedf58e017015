"""`DensityDiversity`: a penalty under which weights become zero, or equal to one another."""

import keras
from keras import ops

from keras_compress import validation


@keras.saving.register_keras_serializable(package="keras_compress")
class DensityDiversity(keras.regularizers.Regularizer):
    """`density * sum |w|^p + diversity * sum over all ordered pairs |w_a - w_b|`.

    The first term wants few weights that are not zero, the second few that differ. With both, a
    codebook of few values codes the weights well; `kc.callbacks.TieWeights` makes the values that
    came close equal. The pairs are never formed: sorted, the weight of rank r of n is added
    `2 r - n - 1` times, which is also its gradient.

    Args:
        density: Number >= 0.
        diversity: Number >= 0. There are n^2 pairs: of a large kernel, a small number is enough.
        p: Exponent of the density term, >= 1.

    Raises:
        ValueError: for a number out of range.

    Reference:
        S. Wang, H. Cai, J. Bilmes, W. Noble, "Training Compressed Fully-Connected Networks with a
        Density-Diversity Penalty", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> penalty = kc.regularizers.DensityDiversity(density=1.0, diversity=0.5)
    >>> float(penalty(keras.ops.array([[1.0, 0.0], [3.0, 1.0]])))
    14.0
    """

    def __init__(self, density=1e-5, diversity=1e-8, p=1.0):
        self.density = validation.number("density", density, 0, owner=self)
        self.diversity = validation.number("diversity", diversity, 0, owner=self)
        self.p = validation.number("p", p, 1, owner=self)

    def __call__(self, weight):
        weight = ops.convert_to_tensor(weight)
        if keras.backend.standardize_dtype(weight.dtype) != "float64":
            weight = ops.cast(weight, "float32")
        flat = ops.reshape(weight, (-1,))
        size = ops.absolute(flat)
        total = self.density * ops.sum(size if self.p == 1.0 else size**self.p)
        if self.diversity == 0.0:
            return total
        # The ranks have no gradient: within an order, the sum over pairs is linear in the weights.
        order = ops.stop_gradient(ops.argsort(flat))
        number = flat.shape[0]
        slopes = 2.0 * ops.arange(1, number + 1, dtype=flat.dtype) - (number + 1.0)
        # Each pair is there twice, as (a, b) and (b, a).
        return total + 2.0 * self.diversity * ops.sum(slopes * ops.take(flat, order))

    def get_config(self):
        return {"density": self.density, "diversity": self.diversity, "p": self.p}
