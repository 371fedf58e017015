"""Multiply-accumulates of a model, layer by layer."""

import dataclasses
import functools
import math
import re
import warnings

import keras


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a model's graph, with the shapes it takes and gives."""

    layer: keras.layers.Layer
    input_shapes: tuple
    output_shape: tuple


def macs(model):
    """Multiply-accumulates of one sample through a model.

    Counted are the products of kernels with their inputs (dense, convolutional, recurrent,
    attention) and whatever a compressed layer's own `macs` counts; element-wise work
    (activations, batch normalisation, pooling, additions) is not. A layer called several times
    counts several times.

    Args:
        model: A built model with `inputs` (Sequential or functional), nested ones included.

    Returns:
        An integer.

    Raises:
        ValueError: if the model has no graph, or a shape that the count needs is open.

    Example:

    >>> import keras
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, padding="same"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> macs(model)
    4864
    """
    return sum(call_macs(call) for call in layer_calls(model))


def layer_calls(model):
    """Lists the calls of all layers in a model's graph, in an order in which they can run.

    Returns:
        List of `LayerCall`; a nested model is opened.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"Model '{getattr(model, 'name', model)}' has no graph to read shapes from. Build it "
            "with keras.Input (Sequential or functional), or wrap it: x = keras.Input(shape); "
            "keras.Model(x, model(x))."
        )
    calls, seen = [], set()
    ends = {id(tensor) for tensor in model.inputs}
    stack = [(tensor, False) for tensor in reversed(model.outputs)]
    while stack:
        tensor, expanded = stack.pop()
        operation, node_index, _ = tensor._keras_history
        key = (id(operation), node_index)
        if id(tensor) in ends or (key in seen and not expanded):
            continue
        node = operation._inbound_nodes[node_index]
        if not expanded:
            seen.add(key)
            stack.append((tensor, True))
            stack.extend((parent, False) for parent in node.input_tensors)
        elif isinstance(operation, keras.Model):
            calls.extend(layer_calls(operation))
        elif isinstance(operation, keras.layers.Layer):
            shapes = tuple(tuple(t.shape) for t in node.input_tensors)
            if shapes:
                calls.append(LayerCall(operation, shapes, tuple(node.output_tensors[0].shape)))
    return calls


def call_macs(call):
    """Multiply-accumulates of one sample through one call of a layer."""
    try:
        return int(layer_macs(call.layer, call))
    except TypeError as error:
        if None not in (d for s in (*call.input_shapes, call.output_shape) for d in s[1:]):
            raise
        raise open_shape(call) from error


def open_shape(call):
    """The `ValueError` for a `LayerCall` whose cost depends on a size that is open."""
    return ValueError(
        f"Layer '{call.layer.name}' has an open shape ({call.input_shapes[0]} -> "
        f"{call.output_shape}): what it costs depends on it. Build the model with a keras.Input of "
        "a fixed shape."
    )


@functools.singledispatch
def layer_macs(layer, call):
    """Multiply-accumulates of one sample through `layer`, called as `call` says."""
    if hasattr(layer, "macs"):
        return layer.macs(call.input_shapes[0])
    if any(len(w.shape) > 1 for w in layer.trainable_weights):
        warnings.warn(
            f"The multiply-accumulates of layer '{layer.name}' ({type(layer).__name__}) are not "
            "counted: give it a method macs(input_shape).",
            stacklevel=2,
        )
    return 0


@layer_macs.register(keras.layers.Embedding)
@layer_macs.register(keras.layers.BatchNormalization)
@layer_macs.register(keras.layers.LayerNormalization)
@layer_macs.register(keras.layers.PReLU)
def _(layer, call):
    return 0


@layer_macs.register(keras.layers.Dense)
def _(layer, call):
    return math.prod(call.input_shapes[0][1:]) * layer.units


@layer_macs.register(keras.layers.EinsumDense)
def _(layer, call):
    inputs, kernel, _ = re.split(",|->", layer.equation.replace(" ", ""))
    shape = call.input_shapes[0]
    named = inputs.replace(".", "")
    # Without an ellipsis the first letter is the batch, else the batch is part of the ellipsis.
    leading = 1 if named == inputs else len(shape) - len(named)
    letters = named[1:] if named == inputs else named
    sizes = dict(zip(letters, shape[len(shape) - len(letters) :], strict=True))
    sizes |= dict(zip(kernel, layer.kernel.shape, strict=True))
    return math.prod(shape[1:leading]) * math.prod(sizes.values())


@layer_macs.register(keras.layers.Conv1D)
@layer_macs.register(keras.layers.Conv2D)
@layer_macs.register(keras.layers.Conv3D)
def _(layer, call):
    # A kernel of shape (*size, c_in / groups, filters) is used once at each output position.
    return _positions(layer, call.output_shape) * math.prod(layer.kernel.shape)


@layer_macs.register(keras.layers.Conv1DTranspose)
@layer_macs.register(keras.layers.Conv2DTranspose)
@layer_macs.register(keras.layers.Conv3DTranspose)
def _(layer, call):
    return _positions(layer, call.input_shapes[0]) * math.prod(layer.kernel.shape)


@layer_macs.register(keras.layers.DepthwiseConv1D)
@layer_macs.register(keras.layers.DepthwiseConv2D)
def _(layer, call):
    return _positions(layer, call.output_shape) * math.prod(layer.kernel.shape)


@layer_macs.register(keras.layers.SeparableConv1D)
@layer_macs.register(keras.layers.SeparableConv2D)
def _(layer, call):
    kernels = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
    return _positions(layer, call.output_shape) * kernels


@layer_macs.register(keras.layers.SimpleRNN)
@layer_macs.register(keras.layers.LSTM)
@layer_macs.register(keras.layers.GRU)
def _(layer, call):
    cell = layer.cell
    kernels = math.prod(cell.kernel.shape) + math.prod(cell.recurrent_kernel.shape)
    return call.input_shapes[0][1] * kernels


@layer_macs.register(keras.layers.Bidirectional)
def _(layer, call):
    return layer_macs(layer.forward_layer, call) + layer_macs(layer.backward_layer, call)


@layer_macs.register(keras.layers.TimeDistributed)
def _(layer, call):
    shape = call.input_shapes[0]
    inner = LayerCall(
        layer.layer,
        ((shape[0], *shape[2:]),),
        (call.output_shape[0], *call.output_shape[2:]),
    )
    return shape[1] * layer_macs(layer.layer, inner)


@layer_macs.register(keras.layers.MultiHeadAttention)
def _(layer, call):
    query = call.input_shapes[0]
    value = call.input_shapes[1] if len(call.input_shapes) > 1 else query
    key = call.input_shapes[2] if len(call.input_shapes) > 2 else value
    q, k = (math.prod(shape[1:-1]) for shape in (query, key))
    heads, key_dim = layer.num_heads, layer.key_dim
    value_dim = layer.value_dim or key_dim
    projections = heads * (
        q * query[-1] * key_dim
        + k * key[-1] * key_dim
        + k * value[-1] * value_dim
        + q * value_dim * call.output_shape[-1]
    )
    return projections + heads * q * k * (key_dim + value_dim)


def _positions(layer, shape):
    """Number of spatial positions of a feature map."""
    return math.prod(shape[1:-1] if layer.data_format == "channels_last" else shape[2:])
