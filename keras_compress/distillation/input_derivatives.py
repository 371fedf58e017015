"""Derivatives with respect to a model's inputs, inside the compiled step."""

import keras
from keras import tree

from keras_compress import validation


def check_inputs(model, owner):
    """Raises `ValueError` for a model whose outputs have no derivative by its inputs."""
    if keras.backend.backend() not in ("tensorflow", "jax"):
        raise ValueError(
            f"{validation.prefix(owner)}derivatives by inputs are there on the TensorFlow and JAX "
            f"backends; got {keras.backend.backend()!r}."
        )
    discrete = (keras.layers.Embedding, keras.layers.IntegerLookup, keras.layers.Discretization)
    inputs = getattr(model, "inputs", None) or ()
    consumers = [
        layer.name
        for layer in getattr(model, "layers", ())
        if isinstance(layer, discrete)
        and any(t in layer_input for t in map(id, inputs) for layer_input in _input_ids(layer))
    ]
    integers = [t.name for t in inputs if not keras.backend.is_float_dtype(t.dtype)]
    if consumers or integers:
        raise ValueError(
            f"{validation.prefix(owner)}model '{model.name}' has no derivative by its inputs: "
            f"{', '.join(consumers + integers)} takes integers. Use models of what comes after "
            "the embedding."
        )


def _input_ids(layer):
    return [{id(t) for t in node.input_tensors} for node in layer._inbound_nodes]


def directional_derivative(function, inputs, direction):
    """The derivative `d/ds function(inputs + s direction)` at `s = 0`, by forward mode.

    Args:
        function: Function from a structure of tensors to a tensor.
        inputs: Structure of float tensors.
        direction: The same structure.

    Returns:
        Tuple of the function's value and the derivative, of the same shape.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.jvp(function, (inputs,), (direction,))
    import tensorflow as tf

    primals = tree.flatten(inputs)
    with tf.autodiff.ForwardAccumulator(primals, tree.flatten(direction)) as accumulator:
        value = function(tree.pack_sequence_as(inputs, primals))
    return value, accumulator.jvp(value, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def input_gradient(function, inputs):
    """The gradient of a scalar function, which has itself a gradient by the weights.

    Args:
        function: Function from a structure of tensors to a scalar.
        inputs: Structure of float tensors.

    Returns:
        Structure as `inputs`.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function)(inputs)
    import tensorflow as tf

    flat = tree.flatten(inputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(flat)
        value = function(tree.pack_sequence_as(inputs, flat))
    gradients = tape.gradient(value, flat, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tree.pack_sequence_as(inputs, gradients)
