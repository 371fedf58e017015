"""`moonshine`: a student of cheap blocks in the architecture of its teacher."""

import collections
import math
import re

import keras

from keras_compress import matching, validation
from keras_compress.call_graph import CallGraph, Rebuilder
from keras_compress.convert import check_graph
from keras_compress.distillation.attention_transfer import AttentionTransfer
from keras_compress.distillation.distiller import Distiller

_FORMS = '"G(4)", "B(2)", "BG(2,4)" or "S"'


def moonshine(model, block="G(4)", layers=None, *, beta=1000.0):
    """Returns a `Distiller` whose student is the model with cheap blocks for its convolutions.

    The student has the teacher's architecture, with a block in place of each convolution larger
    than 1x1; between the convolutions of a block are a batch normalization and a relu:

    - `"G(g)"`: the convolution in `g` groups, then a 1x1 convolution that mixes them:
      `k^2 c^2 / g + c^2` weights for `c` channels.
    - `"B(b)"`: a bottleneck, 1x1 to `c / b` channels, the convolution of those, 1x1 back:
      `2 c^2 / b + k^2 c^2 / b^2`.
    - `"BG(b,g)"`: the bottleneck, with `g` groups: `2 c^2 / b + k^2 c^2 / (b^2 g)`.
    - `"S"`: depthwise separable (`"G(c)"`, as many groups as channels): `k^2 c + c^2`.

    The last layer of a block has the name, activation and output shape of the convolution, the
    others its name with `_reduce`, `_groups` and so on. The first convolution, which reads the
    image, stays. Blocks start anew, all other layers with the teacher's weights.

    The teacher (`model`) is attached: student and teacher are compared where the resolution
    changes, by the attention maps of the last layer of each resolution. What is left to do:

        distiller = kc.distillation.moonshine(model, "G(4)")
        distiller.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        distiller.fit(x, y, epochs=100)
        student = distiller.student

    What it buys: fewer parameters and multiply-accumulates; grouped and depthwise convolutions run
    as such in LiteRT. In float32, a small VGG with `"G(4)"` has 3.1 times fewer bytes, 3.0 times
    fewer multiply-accumulates and is 2.7 times faster, with `"G(8)"` 4.6, 4.3 and 2.8 times, with
    `"S"` 8.3, 7.2 and 6.9 times. With `quantize="dynamic"` all blocks gain about 1.3 times only.

    Args:
        model: A trained Sequential or functional model, the teacher; its images have a fixed size.
            It is frozen, as by `Distiller`, and else not changed.
        block: The block.
        layers: Which convolutions: a key or a list of them (layer name, glob, layer class,
            predicate); by default all `Conv2D` of one group larger than 1x1 but the first.
        beta: Weight of the attention loss; of each pair of maps, `beta / 2` over the number of
            elements of the map, as in the papers.

    Returns:
        A `Distiller`, to be compiled with the loss on the labels. Both losses weigh the same in it
        (`alpha=0.5`). For other losses, make one of `distiller.teacher` and `distiller.student`.

    Raises:
        ValueError: if the model has no graph or no such convolution, `block` is not of these, its
            numbers do not divide the channels of a convolution, or no attention maps can be paired.

    Reference:
        Crowley, Gray, Storkey, "Moonshine: Distilling with Cheap Convolutions", 2018.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> teacher = keras.Sequential([
    ...     keras.Input((16, 16, 1)),
    ...     keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first"),
    ...     keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="second"),
    ...     keras.layers.MaxPooling2D(),
    ...     keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="third"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> distiller = kc.distillation.moonshine(teacher, "G(4)")
    >>> [loss.teacher_layer_name for loss in distiller.distillation_losses]
    ['second', 'third']
    >>> teacher.count_params(), distiller.student.count_params()
    (14378, 5162)
    """
    check_graph(model, "moonshine")
    make = _maker(block)
    beta = validation.number("beta", beta, 0, low_open=True, owner="moonshine")
    graph = CallGraph(model)
    chosen = _chosen(model, graph, layers)
    student = Rebuilder(model, {id(layer): (make(layer), ()) for layer in chosen}).run()
    if not model.trainable:
        # A teacher from before: it was frozen whole, and its copy with it.
        student.trainable = True
    pairs = _attention_maps(model, graph, chosen)
    return Distiller(
        model,
        student,
        [AttentionTransfer(name, name) for name in pairs],
        [beta / 2 / size for size in pairs.values()],
        name="moonshine",
    )


def _maker(block):
    """Function from a convolution to the list of layers of its block."""
    form = re.fullmatch(r"(G|B)\((\d+)\)|(BG)\((\d+), *(\d+)\)|(S)", str(block))
    if form is None:
        raise ValueError(
            f"moonshine: `block` must be {_FORMS}, with numbers of your choice; got "
            f"block={block!r}."
        )
    kind, *numbers = (part for part in form.groups() if part)
    numbers = [validation.positive_int("block", int(n), "moonshine") for n in numbers]
    if kind == "S":
        return _separable
    if kind == "G":
        return lambda layer: _grouped(layer, *numbers)
    return lambda layer: _bottleneck(layer, *numbers)


def _separable(layer):
    config = layer.get_config()
    depthwise = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        use_bias=False,
        depthwise_initializer=config["kernel_initializer"],
        depthwise_regularizer=config["kernel_regularizer"],
        name=f"{layer.name}_depthwise",
        **_geometry(config),
        **_common(config),
    )
    return [*_normalized(layer, depthwise), _pointwise(layer)]


def _grouped(layer, groups):
    channels = layer.kernel.shape[2]
    _check_divides(groups, channels, f"the {channels} input channels", layer)
    return [*_normalized(layer, _spatial(layer, channels, groups)), _pointwise(layer)]


def _bottleneck(layer, factor, groups=1):
    _check_divides(factor, layer.filters, f"the {layer.filters} filters", layer)
    width = layer.filters // factor
    _check_divides(groups, width, f"the {width} channels of the bottleneck", layer)
    reduce = _convolution(layer, width, 1, "_reduce", use_bias=False, activation=None)
    return [
        *_normalized(layer, reduce),
        *_normalized(layer, _spatial(layer, width, groups)),
        _pointwise(layer),
    ]


def _check_divides(number, channels, what, layer):
    if channels % number:
        raise ValueError(
            f"moonshine: {number} does not divide {what} of '{layer.name}'. Choose another block, "
            "or leave that layer out, with `layers`."
        )


def _common(config):
    return {name: config[name] for name in ("data_format", "dtype")}


def _geometry(config):
    return {name: config[name] for name in ("strides", "padding", "dilation_rate")}


def _convolution(layer, filters, kernel_size, suffix="", **changes):
    """A convolution with the other arguments of a layer, but for its geometry."""
    config = {
        **layer.get_config(),
        "name": layer.name + suffix,
        "filters": filters,
        "kernel_size": kernel_size,
        "strides": 1,
        "dilation_rate": 1,
        "padding": "valid",
        "trainable": True,
        **changes,
    }
    return keras.layers.Conv2D.from_config(config)


def _spatial(layer, filters, groups):
    return _convolution(
        layer,
        filters,
        layer.kernel_size,
        "_spatial",
        groups=groups,
        use_bias=False,
        activation=None,
        **_geometry(layer.get_config()),
    )


def _pointwise(layer):
    return _convolution(layer, layer.filters, 1)


def _normalized(layer, convolution):
    """A convolution of a block with what follows it."""
    axis = -1 if layer.data_format == "channels_last" else 1
    dtype = layer.get_config()["dtype"]
    return [
        convolution,
        keras.layers.BatchNormalization(axis, dtype=dtype, name=f"{convolution.name}_norm"),
        keras.layers.ReLU(dtype=dtype, name=f"{convolution.name}_relu"),
    ]


def _chosen(model, graph, keys):
    """The convolutions that get a block."""
    chosen = matching.with_form(
        model, keys, _is_large, "a cheap form: Conv2D of one group, larger than 1x1", "moonshine"
    )
    if keys is None:
        chosen = [layer for layer in chosen if id(layer) not in _readers_of_images(graph)]
    if not chosen:
        raise ValueError(
            f"moonshine: model '{model.name}' has no convolution larger than 1x1 but the first, "
            "which stays. Choose it with `layers`."
        )
    return chosen


def _is_large(layer):
    plain = type(layer) is keras.layers.Conv2D and getattr(layer, "quantization_mode", None) is None
    return plain and layer.groups == 1 and math.prod(layer.kernel_size) > 1


def _readers_of_images(graph):
    """Ids of the layers with a kernel that have no other such layer before them."""
    untouched, first = set(graph.inputs), set()
    for call in graph.calls:
        if untouched.issuperset(call.inputs):
            if any(len(weight.shape) > 1 for weight in getattr(call.operation, "weights", ())):
                first.add(id(call.operation))
            else:
                untouched.update(call.outputs)
    return first


def _attention_maps(model, graph, chosen):
    """The layers whose maps are compared: dict from their names to the elements of a map."""
    if any(layer.data_format == "channels_first" for layer in chosen):
        raise ValueError(
            "moonshine: attention maps are those of images with channels last; got a convolution "
            'with data_format="channels_first".'
        )
    runs = collections.Counter(id(call.operation) for call in graph.calls)
    chosen = {id(layer) for layer in chosen}
    changed, last = set(), {}
    for call in graph.calls:
        if id(call.operation) not in chosen and changed.isdisjoint(call.inputs):
            continue
        changed.update(call.outputs)
        named = isinstance(call.operation, keras.layers.Layer) and len(call.path) == 1
        shape = call.outputs[0].shape
        if not named or runs[id(call.operation)] > 1 or len(shape) != 4 or None in shape[1:3]:
            continue
        size = tuple(shape[1:3])
        # The map of a single element is always 1.
        if math.prod(size) > 1:
            last.pop(size, None)
            last[size] = call.operation.name
    if not last:
        raise ValueError(
            f"moonshine: model '{model.name}' has no layer whose attention map could be compared: "
            "an image of known size, after a block, not inside a nested model. Build the model "
            "with a keras.Input of a fixed shape."
        )
    return {name: math.prod(size) for size, name in last.items()}
