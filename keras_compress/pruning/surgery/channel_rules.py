"""What each layer and operation does with the channels of its inputs.

A rule is a function `(graph, call) -> [axes, ...]`: for each output a tuple with, for each axis
(the batch first), the numbers of the channels on it, or `None` if nothing on it can be removed.
It tells the `ChannelGraph` which axes of the layer's variables count which channels, and which
channels must stay or go together.
"""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.call_graph import Value

_RULES = {}
_SIZES = {}
# Classes that Keras has no public name for: operations of keras.ops, layers of its applications.
_KERAS_RULES = {}


def register_channel_rule(layer_class, rule, sizes=None):
    """Tells channel pruning what a layer of your own does with channels.

    Args:
        layer_class: The class. Subclasses need a registration of their own.
        rule: `"elementwise"` (every channel on its own, or channel i of several inputs with
            channel i of the others; no weights along channels), `"scale"` (the same, and every
            weight of one axis counts channels of the last axis), or a function
            `(graph, call) -> [axes, ...]` (see `keras_compress/pruning/surgery/channel_rules.py`).
        sizes: Function `(layer, shape) -> dict` of the entries of the layer's configuration that
            count channels, where `shape(variable)` is the new shape of a variable of the layer;
            `None` if there are no such entries.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> class Sharpen(keras.layers.Layer):
    ...     def call(self, inputs):
    ...         return inputs * keras.ops.abs(inputs)
    >>> kc.pruning.register_channel_rule(Sharpen, "elementwise")
    """
    if isinstance(rule, str):
        validation.one_of("rule", rule, ("elementwise", "scale"), "register_channel_rule")
        rule = {"elementwise": elementwise, "scale": scale}[rule]
    _RULES[layer_class] = rule
    _SIZES[layer_class] = sizes


def registered_sizes(layer):
    """The `sizes` that a layer's class was registered with, or `None`."""
    return _SIZES.get(type(layer))


def trace(graph, call):
    """Applies the rule of a call's layer or operation; an unknown one keeps its inputs whole."""
    operation = call.operation
    rule = _RULES.get(type(operation))
    if rule is None and type(operation).__module__.startswith("keras.src."):
        rule = _KERAS_RULES.get(type(operation).__name__)
    outputs = None
    # A quantized or LoRA layer's kernel is no variable that could be cut.
    altered = getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", 0)
    if rule is not None and not altered:
        outputs = rule(graph, call)
    if outputs is None:
        outputs = _keep_whole(graph, call)
    return outputs


def _keep_whole(graph, call):
    tracked = [ids for value in call.inputs for ids in graph.axes(value) if ids is not None]
    if tracked:
        graph.fix(*tracked)
        graph.unknown.append(call.operation.name)
    return [(None,) * len(value.shape) for value in call.outputs]


def for_layers(*classes):
    """Decorator: the rule of Keras layers."""

    def register(rule):
        _RULES.update(dict.fromkeys(classes, rule))
        return rule

    return register


def for_operations(*names):
    """Decorator: the rule of classes that Keras keeps to itself, by name."""

    def register(rule):
        _KERAS_RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def channel_axis(layer, rank):
    """Axis of the channels in the input of a layer with `data_format`."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def only(graph, axes, axis):
    """`axes` with nothing to remove anywhere but on one axis."""
    graph.fix(*(ids for place, ids in enumerate(axes) if place != axis))
    return tuple(ids if place == axis else None for place, ids in enumerate(axes))


def replaced(axes, axis, ids):
    """`axes` with other numbers on one axis."""
    return (*axes[:axis], ids, *axes[axis:][1:])


# Functions that look at all channels at once, as activations of a layer.
_MIXING = ("softmax", "log_softmax", "sparsemax", "glu")


def activated(graph, layer, axes):
    """`axes` after the layer's activation: one that is not known to be elementwise fixes them."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__)
    module = getattr(activation, "__module__", "") or ""
    plain = activation is None or (module.startswith("keras.") and name not in _MIXING)
    if not plain:
        graph.fix(*axes)
    return [axes]


# Elementwise layers and operations, one input or several.


@for_layers(
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.Dropout,
    keras.layers.AlphaDropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
    keras.layers.Identity,
    keras.layers.Masking,
    keras.layers.Add,
    keras.layers.Subtract,
    keras.layers.Multiply,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Minimum,
)
@for_operations(
    *("Abs", "Add", "Clip", "Divide", "Exp", "Identity", "Log", "Log1p", "Maximum", "Minimum"),
    *("Multiply", "Negative", "Power", "Reciprocal", "Rsqrt", "Sqrt", "Square", "Subtract"),
    *("TrueDivide", "Cast", "Tanh", "StopGradient", "Celu", "Elu", "Gelu", "HardShrink"),
    *("HardSigmoid", "HardSilu", "HardSwish", "HardTanh", "LeakyRelu", "LogSigmoid", "Mish"),
    *("ReLU", "Relu", "Relu6", "Selu", "Sigmoid", "Silu", "SoftShrink", "Softplus", "Softsign"),
    *("SquarePlus", "TanhShrink", "Threshold", "CustomScaleLayer", "StochasticDepth"),
)
def elementwise(graph, call):
    if not _plain_arguments(call):
        return None
    rank = len(call.output.shape)
    merged = [None] * rank
    for axis in range(rank):
        sides = []
        for value in call.inputs:
            place = axis - rank + len(value.shape)
            if place >= 0 and value.shape[place] != 1:
                sides.append(graph.axes(value)[place])
            elif place >= 0:
                # One channel that goes with all of the others' must stay.
                graph.fix(graph.axes(value)[place])
        known = [ids for ids in sides if ids is not None]
        for ids in sides:
            if known and ids is not known[0]:
                graph.tie(known[0], ids)
        merged[axis] = known[0] if known else None
    axes = tuple(merged)
    return activated(graph, call.operation, axes)


def _plain_arguments(call):
    """Whether all arguments are the graph's tensors or scalars; other arrays have sizes."""
    flat = keras.tree.flatten((call.args, call.kwargs))
    return all(isinstance(leaf, Value) or np.ndim(leaf) == 0 for leaf in flat)


@for_operations("LayerScale")
def scale(graph, call):
    axes = graph.axes(call.inputs[0])
    for variable in call.operation.variables:
        if len(variable.shape) == 1:
            graph.index(variable, 0, axes[-1])
    return [axes]


@for_layers(keras.layers.Softmax)
@for_operations("Softmax", "LogSoftmax")
def _(graph, call):
    axes = graph.axes(call.inputs[0])
    if isinstance(call.operation.axis, int):
        graph.fix(axes[call.operation.axis])
    else:
        graph.fix(*axes)
    return [axes]


@for_layers(keras.layers.PReLU)
def _(graph, call):
    axes, alpha = graph.axes(call.inputs[0]), call.operation.alpha
    for place, size in enumerate(alpha.shape):
        if size != 1:
            graph.index(alpha, place, axes[place + 1])
    return [axes]


@for_layers(keras.layers.BatchNormalization)
def _(graph, call):
    layer, axes = call.operation, graph.axes(call.inputs[0])
    axis = layer.axis % len(axes)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        graph.index(getattr(layer, name, None), 0, axes[axis])
    return [axes]


@for_layers(keras.layers.LayerNormalization, keras.layers.RMSNormalization)
def _(graph, call):
    layer, axes = call.operation, graph.axes(call.inputs[0])
    places = [axis % len(axes) for axis in np.atleast_1d(layer.axis)]
    if len(places) > 1:
        graph.fix(*(axes[place] for place in places))
    else:
        graph.normalize(axes[places[0]])
        for name in ("gamma", "beta", "scale"):
            variable = getattr(layer, name, None)
            if isinstance(variable, keras.Variable):
                graph.index(variable, 0, axes[places[0]])
    return [axes]


@for_layers(keras.layers.GroupNormalization)
def _(graph, call):
    layer, axes = call.operation, graph.axes(call.inputs[0])
    ids = axes[layer.axis % len(axes)]
    if ids is not None:
        # Every group of channels must stay as large as the others.
        groups = ids.reshape(len(ids) if layer.groups == -1 else layer.groups, -1)
        if groups.shape[1] == 1:
            # One channel a group: their number is the number of groups.
            graph.fix(ids)
        graph.tie(groups, groups[:1])
        graph.normalize(ids)
        for name in ("gamma", "beta"):
            graph.index(getattr(layer, name, None), 0, ids)
    return [axes]


# Layers that move, copy or pool positions and leave channels alone.


@for_layers(
    *(
        getattr(keras.layers, f"{name}{rank}D")
        for name in ("MaxPooling", "AveragePooling", "UpSampling", "ZeroPadding", "Cropping")
        for rank in (1, 2, 3)
    ),
    keras.layers.Resizing,
)
def _(graph, call):
    axes = graph.axes(call.inputs[0])
    return [only(graph, axes, channel_axis(call.operation, len(axes)))]


@for_layers(
    *(
        getattr(keras.layers, f"Global{name}Pooling{rank}D")
        for name in ("Max", "Average")
        for rank in (1, 2, 3)
    )
)
def _(graph, call):
    axes = graph.axes(call.inputs[0])
    axis = channel_axis(call.operation, len(axes))
    axes = only(graph, axes, axis)
    if call.operation.keepdims:
        return [axes]
    return [(axes[0], axes[axis])]


@for_layers(keras.layers.Rescaling)
def _(graph, call):
    if np.ndim(call.operation.scale) or np.ndim(call.operation.offset):
        return None
    return [graph.axes(call.inputs[0])]


@for_layers(keras.layers.Concatenate)
@for_operations("Concatenate")
def _(graph, call):
    values = call.inputs
    every = [graph.axes(value) for value in values]
    rank = len(every[0])
    joined = call.operation.axis % rank
    axes = []
    for axis in range(rank):
        known = [a[axis] for a in every if a[axis] is not None]
        if not known:
            axes.append(None)
        elif axis != joined:
            for a in every:
                graph.tie(known[0], a[axis])
            axes.append(known[0])
        else:
            axes.append(
                np.concatenate(
                    [
                        np.zeros(v.shape[axis], int) if a[axis] is None else a[axis]
                        for v, a in zip(values, every, strict=True)
                    ]
                )
            )
    return [tuple(axes)]


@for_operations("Split")
def _(graph, call):
    operation, axes = call.operation, graph.axes(call.inputs[0])
    axis = operation.axis % len(axes)
    parts, ids = operation.indices_or_sections, axes[axis]
    if ids is None:
        return [axes for _ in call.outputs]
    if not isinstance(parts, int):
        return None
    sections = ids.reshape(parts, -1)
    graph.tie(sections, sections[:1])
    return [replaced(axes, axis, section) for section in sections]
