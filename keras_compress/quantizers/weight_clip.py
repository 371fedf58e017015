"""WeightClip: keeps latent weights where a straight-through gradient can move them."""

import keras
from keras import ops

from keras_compress import validation


@keras.saving.register_keras_serializable(package="keras_compress")
class WeightClip(keras.constraints.Constraint):
    """Weight constraint: clips to `[-limit, limit]` after each update.

    The latent weights of binary layers are kept in [-1, 1] by it: a larger one would not change the
    output, only take longer to change sign.

    Args:
        limit: Positive number.

    Raises:
        ValueError: if `limit` is not positive.

    Reference:
        Courbariaux, Bengio, David, "BinaryConnect: Training Deep Neural Networks with binary
        weights during propagations", 2015.

    Example:

    >>> layer = keras.layers.Dense(10, kernel_constraint=WeightClip(0.5))
    """

    def __init__(self, limit=1.0):
        self.limit = validation.number("limit", limit, low=0, low_open=True, owner=self)

    def __call__(self, w):
        return ops.clip(w, -self.limit, self.limit)

    def get_config(self):
        return {"limit": self.limit}
