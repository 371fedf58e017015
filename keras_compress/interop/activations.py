"""Activations of tf_keras that Keras 3 computes differently under the same name."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_compress")
def hard_sigmoid(x):
    """tf_keras's hard sigmoid, `clip(0.2 x + 0.5, 0, 1)`; Keras 3's has the slope 1/6.

    Args:
        x: Tensor.
    """
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)
