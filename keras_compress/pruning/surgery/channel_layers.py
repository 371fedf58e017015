"""Channel rules of the layers with kernels."""

import keras

from keras_compress.call_graph import Value
from keras_compress.layers.channel_shuffle import ChannelShuffle
from keras_compress.layers.maxout_conv2d import MaxoutConv2D
from keras_compress.layers.maxout_dense import MaxoutDense
from keras_compress.pruning.surgery.channel_rules import (
    activated,
    channel_axis,
    for_layers,
    only,
    replaced,
)


@for_layers(keras.layers.Dense)
def _(graph, call):
    layer, (value,) = call.operation, call.inputs
    axes = graph.axes(value)
    last = len(axes) - 1
    graph.consume(call, value, last, layer.kernel, 0)
    ids = graph.produce(call, last, [(layer.kernel, 1), (layer.bias, 0)])
    return activated(graph, layer, replaced(axes, last, ids))


@for_layers(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def _(graph, call):
    layer, (value,) = call.operation, call.inputs
    axis = channel_axis(layer, len(value.shape))
    axes = only(graph, graph.axes(value), axis)
    outputs = [(layer.kernel, -1), (layer.bias, 0)]
    groups = layer.groups
    if groups == 1:
        graph.consume(call, value, axis, layer.kernel, -2)
        return activated(graph, layer, replaced(axes, axis, graph.produce(call, axis, outputs)))
    if layer.kernel.shape[-2] == 1:
        return _depthwise(graph, call, axes, axis, outputs, layer.filters // groups)
    # The groups must stay alike: what goes in one goes in all.
    ids = axes[axis]
    if ids is not None:
        rows = ids.reshape(groups, -1)
        graph.tie(rows, rows[:1])
        graph.index(layer.kernel, -2, rows[0])
        graph.sum(layer.kernel, -2)
    ids = graph.produce(call, axis, outputs)
    rows = ids.reshape(groups, -1)
    graph.tie(rows, rows[:1])
    return activated(graph, layer, replaced(axes, axis, ids))


@for_layers(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
def _(graph, call):
    layer, (value,) = call.operation, call.inputs
    axis = channel_axis(layer, len(value.shape))
    axes = only(graph, graph.axes(value), axis)
    graph.index(layer.kernel, -2, axes[axis])
    return _depthwise(graph, call, axes, axis, [(layer.bias, 0)], layer.depth_multiplier)


def _depthwise(graph, call, axes, axis, outputs, multiplier):
    """A channel of the input and its `multiplier` outputs go together."""
    ids = axes[axis]
    ids = None if ids is None else ids.repeat(multiplier)
    for variable, place in outputs:
        graph.index(variable, place, ids)
    return activated(graph, call.operation, replaced(axes, axis, ids))


@for_layers(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def _(graph, call):
    layer, (value,) = call.operation, call.inputs
    axis = channel_axis(layer, len(value.shape))
    axes = only(graph, graph.axes(value), axis)
    ids = axes[axis]
    graph.consume(call, value, axis, layer.depthwise_kernel, -2)
    graph.index(
        layer.pointwise_kernel, -2, None if ids is None else ids.repeat(layer.depth_multiplier)
    )
    ids = graph.produce(call, axis, [(layer.pointwise_kernel, -1), (layer.bias, 0)])
    return activated(graph, layer, replaced(axes, axis, ids))


@for_layers(
    keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose
)
def _(graph, call):
    layer, (value,) = call.operation, call.inputs
    axis = channel_axis(layer, len(value.shape))
    axes = only(graph, graph.axes(value), axis)
    graph.consume(call, value, axis, layer.kernel, -1)
    ids = graph.produce(call, axis, [(layer.kernel, -2), (layer.bias, 0)])
    return activated(graph, layer, replaced(axes, axis, ids))


@for_layers(MaxoutDense, MaxoutConv2D)
def _(graph, call):
    layer, (value,) = call.operation, call.inputs
    last = len(value.shape) - 1
    axes = graph.axes(value)
    if type(layer) is MaxoutConv2D:
        axes = only(graph, axes, last)
    graph.consume(call, value, last, layer.kernel, -3)
    return [replaced(axes, last, graph.produce(call, last, [(layer.kernel, -2), (layer.bias, 0)]))]


@for_layers(ChannelShuffle)
def _(graph, call):
    layer, (value,) = call.operation, call.inputs
    axis = channel_axis(layer, len(value.shape))
    axes = only(graph, graph.axes(value), axis)
    ids = axes[axis]
    if ids is not None:
        # The groups must stay as large as each other, and in step.
        rows = ids.reshape(layer.groups, -1)
        graph.tie(rows, rows[:1])
        # Copies would come out in another order.
        graph.keep_single(ids)
        ids = rows.T.ravel()
    return [replaced(axes, axis, ids)]


@for_layers(keras.layers.Embedding)
def _(graph, call):
    layer = call.operation
    axes = graph.axes(call.inputs[0])
    ids = graph.produce(call, len(axes), [(layer.embeddings, 1)])
    return [(*axes, ids)]


@for_layers(keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU)
def _(graph, call):
    value = call.inputs[0]
    if len(call.inputs) > 1 or len(call.outputs) > 1:
        return None
    graph.consume(call, value, 2, call.operation.cell.kernel, 0)
    # The units of a recurrent layer are kept.
    graph.fix(graph.axes(value)[1])
    return [(None,) * len(call.output.shape)]


@for_layers(keras.layers.EinsumDense)
def _(graph, call):
    layer, (value,) = call.operation, call.inputs
    axes = graph.axes(value)
    letters, kernel, result = _equation(layer.equation, len(axes), len(call.output.shape))
    known = dict(zip(letters, axes, strict=True))
    for place, letter in enumerate(kernel):
        if letter in known and letter not in result:
            graph.consume(call, value, letters.index(letter), layer.kernel, place)
        elif letter in known:
            graph.index(layer.kernel, place, known[letter])
    for letter in kernel:
        if letter not in letters:
            variables = [(layer.kernel, kernel.index(letter))]
            if layer.bias is not None and letter in (layer.bias_axes or ""):
                variables.append((layer.bias, layer.bias_axes.index(letter)))
            known[letter] = graph.produce(call, result.index(letter), variables)
    for letter in set(layer.bias_axes or "") & set(letters):
        graph.index(layer.bias, layer.bias_axes.index(letter), known[letter])
    return activated(graph, layer, tuple(known[letter] for letter in result))


def _equation(equation, input_rank, output_rank):
    """Letters of input, kernel and output; an ellipsis becomes digits."""
    left, result = equation.replace(" ", "").split("->")
    letters, kernel = left.split(",")

    def opened(term, rank):
        missing = rank - len(term.replace("...", ""))
        return term.replace("...", "".join(map(str, range(missing))))

    return opened(letters, input_rank), kernel, opened(result, output_rank)


@for_layers(keras.layers.MultiHeadAttention)
def _(graph, call):
    layer = call.operation
    given = dict(zip(("query", "value", "key"), call.args, strict=False)) | call.kwargs
    query, value = given.pop("query"), given.pop("value")
    key = given.pop("key", None) or value
    if len(call.outputs) > 1 or any(len(v.shape) != 3 for v in (query, value, key)):
        return None
    for mask in keras.tree.flatten(given):
        if isinstance(mask, Value):
            graph.fix(*graph.axes(mask))
    projections = (layer.query_dense, layer.key_dense, layer.value_dense)
    for part, source in zip(projections, (query, key, value), strict=True):
        graph.fix(*graph.axes(source)[:-1])
        graph.consume(call, source, 2, part.kernel, 0)
    # Heads go as a whole; the size of a head sets the scale of the scores and stays.
    variables = [(layer.output_dense.kernel, 0)]
    for part in projections:
        variables += [(part.kernel, 1), (part.bias, 0)]
    graph.produce(call, None, variables, "/heads")
    graph.sum(layer.output_dense.kernel, 0)
    output = layer.output_dense
    return [(None, None, graph.produce(call, 2, [(output.kernel, 2), (output.bias, 0)]))]
