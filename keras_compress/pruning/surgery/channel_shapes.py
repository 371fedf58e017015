"""Channel rules of what changes shapes: Flatten, Reshape, Permute, slices, reductions."""

import math

import keras
import numpy as np

from keras_compress.pruning.surgery.channel_rules import for_layers, for_operations, replaced


@for_layers(keras.layers.Flatten)
def _(graph, call):
    (value,) = call.inputs
    axes, shape = graph.axes(value), value.shape
    if call.operation.data_format == "channels_first" and len(axes) > 2:
        axes = (axes[0], *axes[2:], axes[1])
        shape = (shape[0], *shape[2:], shape[1])
    return _reshape(graph, axes, shape, call.output.shape)


@for_layers(keras.layers.Reshape)
@for_operations("Reshape")
def _(graph, call):
    (value,) = call.inputs
    outputs = _reshape(graph, graph.axes(value), value.shape, call.output.shape)
    if outputs is not None:
        known = graph.reshaped.get(id(call.operation))
        if known is not None:
            for first, second in zip(known, outputs[0], strict=True):
                graph.tie(first, second)
        graph.reshaped[id(call.operation)] = outputs[0]
    return outputs


def _reshape(graph, axes, shape, new_shape):
    """Numbers after a reshape: element by element, then axis by axis."""
    sizes, new_sizes = shape[1:], new_shape[1:]
    tracked = [place for place, ids in enumerate(axes) if ids is not None]
    if not tracked:
        return [(None,) * len(new_shape)]
    if axes[0] is not None or None in sizes or None in new_sizes:
        return _kept_last(graph, axes, shape, new_shape)
    if math.prod(sizes) != math.prod(new_sizes):
        return None
    # Two axes with channels each would make pairs of them; only the last can lose some.
    graph.fix(*(axes[place] for place in tracked[:-1]))
    place = tracked[-1] - 1
    along = [1] * len(sizes)
    along[place] = sizes[place]
    ids = np.broadcast_to(axes[place + 1].reshape(along), sizes).reshape(new_sizes)
    varying = [axis for axis in range(ids.ndim) if (ids != ids.take([0], axis)).any()]
    if not varying:
        # A single channel.
        graph.fix(axes[place + 1])
        return [(None,) * len(new_shape)]
    # An axis can only lose a position for all positions of the others.
    axis = varying[-1]
    rows = np.moveaxis(ids, axis, -1).reshape(-1, new_sizes[axis])
    first = rows[0]
    if len(varying) > 1:
        rows = np.unique(rows, axis=0)
        graph.tie(rows, first)
    return [(None, *(first if place == axis else None for place in range(len(new_sizes))))]


def _kept_last(graph, axes, shape, new_shape):
    """Open sizes: known is only a last axis that stays as it is."""
    last = axes[-1] is not None and shape[-1] == new_shape[-1]
    if not last or any(ids is not None for ids in axes[:-1]):
        return None
    return [(*(None,) * (len(new_shape) - 1), axes[-1])]


@for_layers(keras.layers.Permute)
def _(graph, call):
    axes = graph.axes(call.inputs[0])
    return [(axes[0], *(axes[place] for place in call.operation.dims))]


@for_operations("Transpose")
def _(graph, call):
    axes, order = graph.axes(call.inputs[0]), call.operation.axes
    return [tuple(axes[place] for place in order)] if order else [axes[::-1]]


@for_layers(keras.layers.RepeatVector)
def _(graph, call):
    axes = graph.axes(call.inputs[0])
    return [(axes[0], None, axes[1])]


@for_operations("ExpandDims")
def _(graph, call):
    axes, rank = list(graph.axes(call.inputs[0])), len(call.output.shape)
    for place in sorted(axis % rank for axis in np.atleast_1d(call.operation.axis)):
        axes.insert(place, None)
    return [tuple(axes)]


@for_operations("Squeeze")
def _(graph, call):
    (value,) = call.inputs
    axes, gone = graph.axes(value), call.operation.axis
    if gone is None:
        gone = [axis for axis, size in enumerate(value.shape) if size == 1]
    gone = {axis % len(axes) for axis in np.atleast_1d(gone)}
    graph.fix(*(axes[place] for place in gone))
    return [tuple(ids for place, ids in enumerate(axes) if place not in gone)]


@for_operations("Mean", "Sum", "Max", "Min", "Prod", "Var", "Std", "Amax", "Amin")
def _(graph, call):
    axes, reduced = graph.axes(call.inputs[0]), call.operation.axis
    places = range(len(axes)) if reduced is None else np.atleast_1d(reduced)
    places = {axis % len(axes) for axis in places}
    graph.fix(*(axes[place] for place in places))
    if call.operation.keepdims:
        return [tuple(None if place in places else ids for place, ids in enumerate(axes))]
    return [tuple(ids for place, ids in enumerate(axes) if place not in places)]


@for_operations("Pad")
def _(graph, call):
    (value,), widths = call.inputs, call.operation.pad_width
    axes = graph.axes(value)
    if len(widths) != len(axes):
        return None
    padded = []
    for ids, width in zip(axes, widths, strict=True):
        # What is padded on is no channel of a layer: 0 marks it.
        padded.append(ids if ids is None or not any(width) else np.pad(ids, tuple(width)))
    return [tuple(padded)]


@for_operations("GetItem")
def _(graph, call):
    value, key = call.args
    axes = graph.axes(value)
    key = key if isinstance(key, tuple) else (key,)
    if any(item is not Ellipsis and not isinstance(item, (int, slice)) for item in key):
        return None
    if Ellipsis in key:
        place = key.index(Ellipsis)
        whole = (slice(None),) * (len(axes) - len(key) + 1)
        key = (*key[:place], *whole, *key[place + 1 :])
    key = (*key, *(slice(None),) * (len(axes) - len(key)))
    left = []
    for ids, item in zip(axes, key, strict=True):
        if item != slice(None):
            # Positions that the program counts must stay where they are.
            graph.fix(ids)
        if isinstance(item, slice):
            left.append(ids if item == slice(None) else None)
    return [tuple(left)]


@for_operations("Matmul")
def _(graph, call):
    first, second = (graph.axes(value) for value in call.inputs)
    if len(first) < 2 or len(first) != len(second):
        return None
    graph.tie(first[-1], second[-2])
    # No weight could be shared out between a channel and its copy.
    graph.keep_single(first[-1])
    axes = [None] * len(first)
    for place in range(len(first) - 2):
        graph.tie(first[place], second[place])
        axes[place] = second[place] if first[place] is None else first[place]
    return [replaced(replaced(tuple(axes), len(axes) - 2, first[-2]), len(axes) - 1, second[-1])]
