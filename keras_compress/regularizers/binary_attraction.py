"""BinaryAttraction: a penalty that pulls weights to two values."""

import keras
from keras import ops

from keras_compress import validation


@keras.saving.register_keras_serializable(package="keras_compress")
class BinaryAttraction(keras.regularizers.Regularizer):
    """`strength * sum_i | |w_i| / c - 1 |^p`: every weight is drawn to the nearer of c and -c.

    After training with it a dense layer bears `sign(w) c` in the place of its weights, one bit
    each: `kc.quantizers.compress_on_the_fly`. Start with a small factor and let it grow,
    `kc.callbacks.PenaltyRamp`: from the first step on, the penalty would freeze the signs that the
    weights happen to have.

    Args:
        strength: Number >= 0.
        p: 1, whose pull is the same at every distance, or 2.
        scale: The value c, or `None` for `mean|w|` of the weights as they are (a constant in the
            gradient).

    Raises:
        ValueError: if an argument is not one of these.

    Reference:
        Soulie, Gripon, Robert, "Compression of Deep Neural Networks on the Fly", 2016.

    Example:

    >>> import keras
    >>> penalty = BinaryAttraction(0.5, p=2, scale=2.0)
    >>> float(penalty(keras.ops.array([2.0, -2.0, 1.0, -4.0])))
    0.625
    """

    def __init__(self, strength, p=1, scale=None):
        self.strength = validation.number("strength", strength, 0, owner=self)
        self.p = validation.one_of("p", p, (1, 2), self)
        self.scale = scale
        if scale is not None:
            self.scale = validation.number("scale", scale, 0, low_open=True, owner=self)

    def __call__(self, weight):
        weight = ops.cast(weight, "float32")
        # |w|, with the gradient 0 at 0 on every backend.
        sizes = ops.multiply(weight, ops.stop_gradient(ops.sign(weight)))
        scale = self.scale
        if scale is None:
            # Weights that are all zero have no scale; none of them moves.
            scale = ops.maximum(ops.stop_gradient(ops.mean(sizes)), keras.config.epsilon())
        off = ops.subtract(ops.divide(sizes, scale), 1.0)
        terms = ops.abs(off) if self.p == 1 else ops.square(off)
        return ops.multiply(self.strength, ops.sum(terms))

    def get_config(self):
        return {"strength": self.strength, "p": self.p, "scale": self.scale}
