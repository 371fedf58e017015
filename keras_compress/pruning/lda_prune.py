"""`lda_prune`: the maps that tell classes apart, what they need, and a classifier on them."""

import keras
import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from keras_compress import validation
from keras_compress.call_graph import CallGraph, Value
from keras_compress.convert import check_graph
from keras_compress.pruning.choice import select
from keras_compress.pruning.criteria.lda import LDA, class_numbers
from keras_compress.pruning.criteria.observer import Observer
from keras_compress.pruning.masks import keep_largest
from keras_compress.pruning.parts import free_producer, number_to_keep
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.pruning.surgery import ChannelGraph, cut, feature_maps
from keras_compress.samples import Samples, structured

_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, *_SEPARABLE)
_POOLING = {
    3: keras.layers.GlobalAveragePooling1D,
    4: keras.layers.GlobalAveragePooling2D,
    5: keras.layers.GlobalAveragePooling3D,
}


def lda_prune(model, data, keep, *, earlier=None, layer=None, batch_size=64):
    """Keeps the maps of the last convolution that tell the classes apart, and what they depend on.

    1. The maps of the last convolution are scored by `criteria.LDA`; the best stay.
    2. Their scores are traced back: every filter hands its score on to its inputs, in proportion to
       the mean magnitude of an input times that of the weights that read it. In each earlier layer
       the channels with the largest sums stay.
    3. What came after the last convolution gives way to global average pooling and the Bayes
       classifier of normal distributions with one covariance (linear discriminant analysis), as a
       Dense layer.

    Train the result on.

    Args:
        model: A built Sequential or functional classifier with one output `(batch, classes)`, or
            `(batch, 1)` for two classes; nested models are dissolved. It is not changed.
        data: `(x, y)` or an iterable of batches `(x, y)`, with class numbers or one-hot rows.
        keep: Number of maps of the last convolution that stay, or their share, a float in (0, 1].
        earlier: Share of the channels of all earlier layers that stay; `None` for the same share.
            Channels that the trace does not reach (before a grouped convolution) stay.
        layer: Name of the layer to take for the last convolution; `None` for the last one.
        batch_size: Rows of `data` at a time.

    Returns:
        A smaller model with the outputs of `model` (probabilities if its last activation gives
        them, otherwise logits), compiled like it if that is compiled.

    Raises:
        ValueError: if the model has no graph, is under a pruning mask, has no convolution whose
            channels may go or another kind of output, or data does not fit or lacks a class.

    Reference:
        Tian, Arbel, Clark, "Efficient Gender Classification Using a Deep LDA-pruned Net", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(8, 3, activation="relu"),
    ...     keras.layers.Conv2D(16, 3, activation="relu", name="last"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(100, activation="relu"),
    ...     keras.layers.Dense(2, activation="softmax"),
    ... ])
    >>> y = np.arange(40) % 2
    >>> x = np.random.default_rng(0).normal(size=(40, 8, 8, 1)) + y[:, None, None, None]
    >>> small = kc.pruning.lda_prune(model, (x, y), keep=4)
    >>> small.get_layer("last").filters, small.count_params() < 0.01 * model.count_params()
    (4, True)
    """
    owner = "lda_prune"
    check_graph(model, owner)
    refuse_masked(model, owner)
    classes = _classes(model)
    graph = ChannelGraph(model)
    producer = free_producer(graph, layer or _last_convolution(graph), owner)
    samples = Samples(model, data, batch_size, labels=True, owner=owner)
    scores = LDA()(graph, producer.layer, data, batch_size=batch_size)[producer.name]
    number = number_to_keep(keep, len(scores), owner)
    stays = keep_largest(scores, len(scores) - number)
    share = number / len(scores)
    if earlier is not None:
        share = validation.number("earlier", earlier, 0, 1, low_open=True, owner=owner)
    kept = _traced(graph, producer, np.where(stays, scores, 0.0), 1 - share, samples)
    kept[producer.channels[~stays]] = False
    small = cut(graph, kept)
    new = _with_classifier(small, producer, samples, classes, _gives_probabilities(graph.graph))
    if model.compiled:
        new.compile_from_config(model.get_compile_config())
    return new


def _classes(model):
    shape = model.output_shape
    if isinstance(shape, (list, dict)) or len(shape) != 2:
        raise ValueError(
            f"lda_prune: the model must have one output of the shape (batch, classes); got {shape}."
        )
    return shape[1]


def _last_convolution(graph):
    names = [p.name for p in graph.producers if isinstance(p.layer, _CONVOLUTIONS)]
    if not names:
        raise ValueError(
            "lda_prune: the model has no convolution; name the layer to prune by `layer=`."
        )
    return names[-1]


def _gives_probabilities(graph):
    (value,) = keras.tree.flatten(graph.outputs)
    operation = value.call.operation
    name = getattr(getattr(operation, "activation", None), "__name__", "")
    return name in ("softmax", "sigmoid") or type(operation).__name__ in ("Softmax", "Sigmoid")


def _traced(graph, last, scores, share, samples):
    """Which channels stay when a share of each layer before `last` goes."""
    calls = graph.graph.calls
    before = {call.operation for call in calls[: calls.index(last.value.call) + 1]}
    readers = [reader for reader in graph.consumers if reader.layer in before]
    sizes = _mean_magnitudes(graph, readers, samples)
    relevance = np.zeros(graph.count)
    relevance[last.channels] = scores
    for reader, size in zip(reversed(readers), reversed(sizes), strict=True):
        for producer in graph.producers:
            if producer.layer is not reader.layer:
                continue
            parts = size[:, None] * _strengths(reader, producer)
            whole = parts.sum(0)
            parts = np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 0)
            np.add.at(relevance, reader.channels, parts @ relevance[producer.channels])
    kept = np.ones(graph.count, bool)
    reached = [
        group
        for group in graph.groups
        if not group.normalized
        and relevance[group.channels].any()
        and not np.isin(last.channels, group.channels).any()
    ]
    going = {p.name: relevance[p.channels] for group in reached for p in group.producers}
    return select(graph, going, share, "layer") if going and share > 0 else kept


def _strengths(reader, producer):
    """Sums of the magnitudes of the weights between a layer's inputs and its outputs."""
    if isinstance(reader.layer, _SEPARABLE):
        depthwise = _magnitudes(reader.variable)
        pointwise = _magnitudes(producer.variable)
        inputs, multiplier = depthwise.shape[-2:]
        depthwise = depthwise.reshape(-1, inputs, multiplier).sum(0)
        pointwise = pointwise.reshape(inputs, multiplier, -1)
        return np.einsum("im,imo->io", depthwise, pointwise)
    kernel = np.moveaxis(_magnitudes(reader.variable), reader.place, 0)
    if reader.variable is not producer.variable:
        # Attention: every output depends on all of the projections.
        rows = kernel.reshape(len(kernel), -1).sum(1, keepdims=True)
        return np.repeat(rows, len(producer.channels), 1)
    place = producer.place + (producer.place < reader.place)
    kernel = np.moveaxis(kernel, place, 1)
    return kernel.reshape(*kernel.shape[:2], -1).sum(-1)


def _magnitudes(variable):
    return np.abs(keras.ops.convert_to_numpy(variable).astype("float64"))


def _mean_magnitudes(graph, readers, samples):
    """For each reader, the mean over samples and positions of the magnitude of each input."""
    observer = Observer(graph.graph, [reader.value for reader in readers])
    sums, count = [0.0] * len(readers), 0
    for inputs, _ in samples:
        count += len(inputs[0])
        for index, tensor in enumerate(observer.activations(inputs)):
            moved = np.moveaxis(np.abs(tensor.astype("float64")), readers[index].axis, -1)
            positions = moved.reshape(len(moved), -1, moved.shape[-1])
            sums[index] = sums[index] + positions.mean(1).sum(0)
    return [total / count for total in sums]


def _with_classifier(model, last, samples, classes, probabilities):
    """The model up to the feature maps of `last`, with a classifier on them."""
    graph = CallGraph(model)
    (call,) = [call for call in graph.calls if call.path == last.value.call.path][:1]
    value = feature_maps(call.output)[-1]
    features, labels = _pooled(graph, value, last.axis, samples)
    kernel, bias = _classifier(features, labels, classes)
    x, inputs = _upto(graph, value, model)
    if len(value.shape) > 2:
        form = "channels_last" if last.axis == len(value.shape) - 1 else "channels_first"
        x = _POOLING[len(value.shape)](data_format=form, name="lda_pooling")(x)
    kind = "sigmoid" if classes == 1 else "softmax"
    head = keras.layers.Dense(
        classes, activation=kind if probabilities else None, name="lda_classifier"
    )
    outputs = head(x)
    head.set_weights([kernel, bias])
    return keras.Model(structured(model, inputs), outputs, name=model.name)


def _pooled(graph, value, axis, samples):
    observer = Observer(graph, [value])
    features, labels = [], []
    for inputs, targets in samples:
        (tensor,) = observer.activations(inputs)
        moved = np.moveaxis(tensor.astype("float64"), axis, -1)
        features.append(moved.reshape(len(moved), -1, moved.shape[-1]).mean(1))
        labels.append(targets)
    return np.concatenate(features), class_numbers(np.concatenate(labels), "lda_prune")


def _classifier(features, labels, classes):
    """Kernel and bias whose softmax, or sigmoid for one output, is the Bayes classifier's."""
    expected = np.arange(max(classes, 2))
    if not np.array_equal(np.unique(labels), expected):
        raise ValueError(
            f"lda_prune: the model has {len(expected)} classes, and the data must have samples of "
            f"each; it has the class numbers {np.unique(labels).tolist()}."
        )
    found = LinearDiscriminantAnalysis().fit(features, labels)
    kernel, bias = found.coef_.T, found.intercept_
    if classes == 2:
        # For two classes scikit-learn gives the difference of the second's score to the first's.
        kernel, bias = np.pad(kernel, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
    return kernel, bias


def _upto(graph, value, model):
    """Calls the layers of a model on new inputs: `(tensor of value, inputs)`."""
    inputs = [
        keras.Input(
            batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history.operation.name
        )
        for tensor in model.inputs
    ]
    table = dict(zip(graph.inputs, inputs, strict=True))

    def known(leaf):
        return table[leaf] if isinstance(leaf, Value) else leaf

    for call in graph.calls:
        if len(call.path) > 1:
            # Layers of nested models come side by side here, where names must differ.
            call.operation.name = "_".join(call.path)
        args, kwargs = keras.tree.map_structure(known, (call.args, call.kwargs))
        outputs = keras.tree.flatten(call.operation(*args, **kwargs))
        table.update(zip(call.outputs, outputs, strict=True))
        if call is value.call:
            return table[value], inputs
