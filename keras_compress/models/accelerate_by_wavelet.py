"""`accelerate_by_wavelet`: a classifier at half the resolution, with the details beside it."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.call_graph import CallGraph, Value, values_of
from keras_compress.convert import check_graph, new_like
from keras_compress.models.images import channel_axis, conv, norm
from keras_compress.models.wavelet_auto_encoder import WaveletAutoEncoder

OWNER = "accelerate_by_wavelet"
_POOLING = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
_GLOBAL = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
#: What a value may pass on its way from Flatten to the Dense layer that reads its positions.
_BETWEEN = (keras.layers.Dropout, keras.layers.Activation, keras.layers.ReLU)


def accelerate_by_wavelet(classifier, wae, *, filters=8, name=None):
    """Puts the encoder of a `WaveletAutoEncoder` before a classifier: a quarter of the work.

    The low-frequency part of the image, half as high and wide, goes through the layers of the
    classifier; the high-frequency part through a thin net: a 3x3 convolution with strides of 2,
    batch normalisation and ReLU for each halving of the map. What comes of it is added, by a 1x1
    convolution that begins as zero, to the last feature map of the classifier, before its global
    pooling or `Flatten`. So the new model begins as the classifier at half the resolution, and one
    `fit` trains all of it: encoder, classifier and thin net. (The paper trains the auto-encoder
    first: do so before, by `wae.fit(images)`.)

    All weights of the classifier carry over. With a global pooling they fit as they are. A
    `Flatten` gets as many positions as it had where leaving out the last pooling before it makes
    up for the half resolution; otherwise the `Dense` layer that reads it keeps its kernel
    resampled: the weights of each old position go to the new positions that lie there, by the area
    that they share. The last pooling is also left out where the map would vanish.

    Args:
        classifier: A built Sequential or functional model, nested ones included, of one image of
            fixed size. It is not changed.
        wae: A `WaveletAutoEncoder` of as many channels. It is not changed; its decoder is left out.
        filters: Filters of the first convolution of the thin net; twice as many in each further
            one, up to a quarter of the classifier's last ones.
        name: Name of the model; by default the classifier's, with `"_wavelet"`.

    Returns:
        A new functional model of stock layers, compiled like `classifier` if that is. Layers have
        the names that they have in the classifier (those in nested models, joined by `"_"`),
        `<wae.name>_low` and `<wae.name>_high`, `high_...` for the thin net.

    Raises:
        ValueError: if the models do not fit together, there is no feature map to add to, or the
            image is too small for half the resolution.

    Reference:
        Chen, Lin, Zuo, Luo, Zhang, "Learning a Wavelet-like Auto-Encoder to Accelerate Deep Neural
        Networks", 2018.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> classifier = keras.Sequential([
    ...     keras.Input((32, 32, 3)),
    ...     keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
    ...     keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> fast = kc.models.accelerate_by_wavelet(classifier, kc.models.WaveletAutoEncoder(3))
    >>> round(kc.profile.macs(fast) / kc.profile.macs(classifier), 2)
    0.26
    """
    _check(classifier, wae)
    validation.positive_int("filters", filters, OWNER)
    graph = CallGraph(classifier)
    end = _end(graph)
    maps = end.inputs[0]
    dropped, shape = _dropped(graph, end, wae)
    dense = _resampled(end, shape)
    source = classifier.inputs[0]
    image = keras.Input(source.shape[1:], dtype=source.dtype, name=_input_name(source))
    copies = _Copies()
    encoder = CallGraph(wae.encoder)
    tensors = {encoder.inputs[0]: image}
    for call in encoder.calls:
        copies.call(call, tensors)
    low, high = (tensors[value] for value in encoder.outputs)
    tensors = {graph.inputs[0]: low}
    for call in graph.calls:
        if call is dropped:
            tensors[call.output] = tensors[call.inputs[0]]
        else:
            copies.call(call, tensors)
        if maps in call.outputs:
            tensors[maps] = _fused(tensors[maps], high, filters)
    outputs = keras.tree.map_structure(tensors.get, graph.outputs)
    model = keras.Model(image, outputs, name=name or f"{classifier.name}_wavelet")
    for old, new in copies.pairs:
        values = values_of(old)
        if old is dense:
            values[0] = _at_other_positions(values[0], maps.shape, shape)
        for variable, value in zip(getattr(new, "variables", ()), values, strict=True):
            variable.assign(value)
    if classifier.compiled:
        model.compile_from_config(classifier.get_compile_config())
    return model


def _check(classifier, wae):
    check_graph(classifier, OWNER)
    if not isinstance(wae, WaveletAutoEncoder):
        raise ValueError(
            f"{OWNER}: `wae` must be a kc.models.WaveletAutoEncoder; got {type(wae).__name__}."
        )
    shapes = [tuple(tensor.shape[1:]) for tensor in classifier.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or None in shapes[0]:
        raise ValueError(
            f"{OWNER}: the classifier must take one image of fixed height and width; '"
            f"{classifier.name}' takes {shapes}. Build it with such a keras.Input."
        )
    channels = shapes[0][channel_axis() - (channel_axis() > 0)]
    if channels != wae.channels:
        raise ValueError(
            f"{OWNER}: the classifier takes {channels} channels, and `wae` {wae.channels}; make "
            f"WaveletAutoEncoder(channels={channels})."
        )


def _end(graph):
    """The call that ends the feature maps: the last global pooling or `Flatten` of one."""
    ends = [
        call
        for call in graph.calls
        if isinstance(call.operation, (*_GLOBAL, keras.layers.Flatten))
        and len(call.inputs[0].shape) == 4
        and len(call.output.shape) == 2
        and call.inputs[0].call is not None
    ]
    if not ends:
        raise ValueError(
            f"{OWNER}: the details are added to the feature map before a global pooling or Flatten "
            "layer, and the classifier has none."
        )
    return ends[-1]


def _dropped(graph, end, wae):
    """The pooling to leave out, or `None`, and the shape that the last feature map gets."""
    maps = end.inputs[0]
    shape = wae.encoder.compute_output_shape(graph.inputs[0].shape)[0]
    plain = _shape_of(graph, maps, shape)
    flat = isinstance(end.operation, keras.layers.Flatten)
    if plain and not (flat and plain != maps.shape):
        return None, plain
    pools = [call for call in graph.calls if _halves(call)]
    last = pools[-1] if pools else None
    without = _shape_of(graph, maps, shape, last) if last else None
    # A pooling less is a better start than other positions, and as cheap.
    if without and (plain is None or without == maps.shape):
        return last, without
    if plain is None:
        raise ValueError(
            f"{OWNER}: images of {tuple(graph.inputs[0].shape[1:])} are too small for this "
            "classifier at half the resolution: a feature map vanishes, or is not as large as a "
            "layer wants, even without the last pooling. Train one with less pooling, larger "
            "images, and layers that take any size."
        )
    return None, plain


def _halves(call):
    layer = call.operation
    return isinstance(layer, _POOLING) and tuple(layer.strides) == (2, 2)


def _shape_of(graph, wanted, shape, dropped=None):
    """Shape of a value for another shape of the image; `None` where there is none."""
    table = {graph.inputs[0]: keras.KerasTensor(shape)}
    for call in graph.calls:
        if call is dropped:
            table[call.output] = table[call.inputs[0]]
        elif all(value in table for value in call.inputs):
            args, kwargs = _arguments(call, table)
            try:
                specs = keras.tree.flatten(call.operation.compute_output_spec(*args, **kwargs))
            except ValueError:
                # A window larger than the map, or branches that no longer fit together.
                continue
            table.update(zip(call.outputs, specs, strict=True))
    if wanted not in table or 0 in table[wanted].shape:
        return None
    return tuple(table[wanted].shape)


def _resampled(end, shape):
    """The `Dense` layer whose kernel has to be resampled, or `None`."""
    maps = end.inputs[0]
    if not isinstance(end.operation, keras.layers.Flatten) or shape == maps.shape:
        return None
    call = end.sole_reader
    while call is not None and isinstance(call.operation, _BETWEEN):
        call = call.sole_reader
    if call is not None and type(call.operation) is keras.layers.Dense:
        return call.operation
    raise ValueError(
        f"{OWNER}: '{end.operation.name}' gets a map of {shape[1:]} instead of {maps.shape[1:]}, "
        "and only a Dense layer behind it can be made for that. Use a global pooling in its place."
    )


def _at_other_positions(kernel, old, new):
    """A kernel that reads a flattened map, for a map of another size.

    Args:
        kernel: Array `(positions * channels, units)`.
        old: Shape of the map that it reads.
        new: Shape of the map that it is to read.
    """
    # Flatten puts the channels last, whatever the data format.
    first = channel_axis() == 1
    (rows, columns), (new_rows, new_columns) = (s[2:] if first else s[1:3] for s in (old, new))
    kernel = kernel.reshape(rows, columns, -1, kernel.shape[1])
    down, across = _shares(rows, new_rows), _shares(columns, new_columns)
    return np.einsum("ir,jc,rcsu->ijsu", down, across, kernel).reshape(-1, kernel.shape[3])


def _shares(old, new):
    """Share of each old position that lies in each new one: columns sum to 1."""
    edges = np.arange(new)[:, None] * old / new
    left = np.maximum(edges, np.arange(old))
    right = np.minimum(edges + old / new, np.arange(old) + 1)
    return np.maximum(right - left, 0)


class _Copies:
    """Layers made anew, without their weights' values, and called on other tensors."""

    def __init__(self):
        self.pairs = []
        self._made = {}

    def call(self, call, tensors):
        """Makes one call anew and adds its outputs to `tensors`."""
        operation = call.operation
        if id(operation) not in self._made:
            config = {**operation.get_config(), "name": "_".join(call.path)}
            self._made[id(operation)] = new_like(operation, config)
            self.pairs.append((operation, self._made[id(operation)]))
        args, kwargs = _arguments(call, tensors)
        outputs = self._made[id(operation)](*args, **kwargs)
        tensors.update(zip(call.outputs, keras.tree.flatten(outputs), strict=True))


def _arguments(call, table):
    def known(leaf):
        return table[leaf] if isinstance(leaf, Value) else leaf

    return keras.tree.map_structure(known, (call.args, call.kwargs))


def _fused(maps, high, filters):
    """The feature map of the classifier, plus what a thin net makes of the high frequencies."""
    first = channel_axis() == 1
    size, wanted = (t.shape[2:] if first else t.shape[1:3] for t in (high, maps))
    channels = maps.shape[channel_axis()]
    most = max(filters, channels // 4)
    x, number = high, 0
    while True:
        number += 1
        strides = tuple(
            2 if have > want and -(-have // 2) >= want else 1
            for have, want in zip(size, wanted, strict=True)
        )
        if number > 1 and strides == (1, 1):
            break
        count = min(filters * 2 ** (number - 1), most)
        x = norm(f"high_norm{number}")(conv(count, 3, strides, f"high_conv{number}")(x))
        x = keras.layers.ReLU(name=f"high_relu{number}")(x)
        size = [-(-have // step) for have, step in zip(size, strides, strict=True)]
    over = [have - want for have, want in zip(size, wanted, strict=True)]
    if min(over) < 0:
        raise ValueError(
            f"{OWNER}: the last feature map of the classifier, {tuple(maps.shape[1:])}, is larger "
            "than its image at half the resolution."
        )
    if any(over):
        crop = tuple((n // 2, n - n // 2) for n in over)
        x = keras.layers.Cropping2D(crop, name="high_crop")(x)
    x = conv(channels, 1, name="high_features", kernel_initializer="zeros")(x)
    return keras.layers.Add(name="high_add")([maps, x])


def _input_name(tensor):
    return tensor._keras_history.operation.name
