"""Gradients on any backend, for tests of what a backward pass gives."""

import keras
from keras import ops


def gradient(function, value):
    """Gradient of a scalar `function` of one array, as a numpy array."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return ops.convert_to_numpy(jax.grad(function)(ops.convert_to_tensor(value)))
    tensor = ops.convert_to_tensor(value)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensor)
            result = function(tensor)
        return ops.convert_to_numpy(tape.gradient(result, tensor))
    tensor = tensor.detach().requires_grad_()
    function(tensor).backward()
    return ops.convert_to_numpy(tensor.grad)
