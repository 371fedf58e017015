"""`net2deeper`: a deeper model with the same outputs."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.call_graph import CallGraph, Rebuilder, values_of
from keras_compress.convert import check_graph, new_like
from keras_compress.pruning.criteria.observer import Observer
from keras_compress.pruning.surgery import feature_maps
from keras_compress.samples import Samples

_LAYERS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def net2deeper(model, after_layer, data=None, *, batch_size=64):
    """Returns a copy of a model with a layer more, that starts as the identity.

    The new layer is one of the same class and width, without strides and dilation, with the
    identity as its kernel. It comes after `after_layer` and the batch normalization and activation
    that follow that, and gets its own of both: conv, norm, relu become conv, norm, relu, conv,
    norm, relu. The new layers are called like the old ones with `_deeper` added.

    A new batch normalization undoes what it does, exactly in inference. In training it divides by
    the statistics of the batch, and the outputs stay about as they are only if `gamma` and `beta`
    undo just those: for this, give `data`. Where no batch normalization follows, it is not used.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        after_layer: Name of a dense or convolutional layer, with those of the models around it
            (`"encoder/conv"`), or the layer.
        data: An array, `(x, y)` or an iterable of batches; targets are not looked at. `None`: a new
            batch normalization starts with mean 0 and variance 1.
        batch_size: Rows of `data` at a time.

    Returns:
        A model with the same outputs, compiled like `model` if that is compiled.

    Raises:
        ValueError: if the model has no such layer, it is no `Dense` or `Conv`, it runs several
            times, its batch normalization is of another class, or its activation is not idempotent
            (`f(f(x)) = f(x)`, as of relu), so that no identity can go through it; if `data` does
            not fit.

    Reference:
        Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", 2016.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
    ...     keras.layers.BatchNormalization(name="norm"),
    ...     keras.layers.ReLU(name="relu"),
    ...     keras.layers.GlobalAveragePooling2D(name="pool"),
    ... ])
    >>> deep = kc.distillation.net2deeper(model, "conv")
    >>> [layer.name for layer in deep.layers]
    ['conv', 'norm', 'relu', 'conv_deeper', 'norm_deeper', 'relu_deeper', 'pool']
    """
    check_graph(model, "net2deeper")
    graph = CallGraph(model)
    call = _call(graph, after_layer)
    block = _block(graph, call)
    samples = None if data is None else Samples(model, data, batch_size, owner="net2deeper")
    taken = {getattr(call.operation, "name", "") for call in graph.calls}
    last, arrays, chain = block[-1].operation, [], []
    for old in (one.operation for one in block):
        config = {**old.get_config(), "name": _free_name(old.name, taken)}
        values = []
        if old is call.operation:
            config |= _geometry(old)
            values = _identity(old)
        elif isinstance(old, keras.layers.BatchNormalization):
            values = _undone(old, samples and _moments(graph, block[-1], old.axis, samples))
        chain.append(new_like(old, config))
        arrays += values
    copy = new_like(last, last.get_config())
    return Rebuilder(model, {id(last): ([copy, *chain], [*values_of(last), *arrays])}).run()


def _call(graph, layer):
    """The one call of a layer, which must be dense or a convolution."""
    names = {}
    for call in graph.calls:
        names.setdefault("/".join(call.path), []).append(call)
    if not isinstance(layer, str):
        found = [name for name, calls in names.items() if calls[0].operation is layer]
        layer = found[0] if found else getattr(layer, "name", repr(layer))
    if layer not in names:
        raise ValueError(
            f"net2deeper: the model has no layer '{layer}'.{validation.did_you_mean(layer, names)}"
        )
    call = names[layer][0]
    _check_called_once(graph, call.operation)
    quantized = getattr(call.operation, "quantization_mode", None)
    if type(call.operation) not in _LAYERS or quantized is not None:
        raise ValueError(
            "net2deeper: a new layer can come after a Dense, Conv1D, Conv2D or Conv3D (and its "
            f"batch normalization and activation); '{layer}' is a "
            f"{'quantized ' * (quantized is not None)}{type(call.operation).__name__}."
        )
    return call


def _check_called_once(graph, operation):
    count = sum(call.operation is operation for call in graph.calls)
    if count > 1:
        raise ValueError(
            f"net2deeper: '{operation.name}' runs {count} times, so that it is not said where the "
            "new layer is to come. Choose another layer."
        )


def _block(graph, call):
    """Calls of a layer and what belongs to it, up to the first activation that is not linear."""
    calls = [value.call for value in feature_maps(call.output)]
    functions = [_activation(one.operation) for one in calls]
    end = next((i for i, function in enumerate(functions) if function is not None), len(calls) - 1)
    block, function = calls[: end + 1], functions[end]
    if function is not None and not _idempotent(function):
        name = "/".join(block[-1].path)
        raise ValueError(
            f"net2deeper: the activation of '{name}' is not idempotent: f(f(x)) is not f(x), and "
            "the outputs would change whatever the new layer's kernel. Layers with a piecewise "
            "linear activation that leaves its own values alone (relu, relu6, linear) can be "
            "repeated."
        )
    for operation in (one.operation for one in block):
        _check_called_once(graph, operation)
        norm = isinstance(operation, keras.layers.BatchNormalization)
        if norm and type(operation) is not keras.layers.BatchNormalization:
            raise ValueError(
                f"net2deeper: the batch normalization '{operation.name}' is a "
                f"{type(operation).__name__}; only keras.layers.BatchNormalization can be undone."
            )
    return block


def _activation(operation):
    """The function that a layer or operation applies last, or `None` if that is linear."""
    if isinstance(operation, keras.layers.BatchNormalization):
        return None
    if isinstance(operation, (*_LAYERS, keras.layers.Activation)):
        linear = operation.activation in (None, keras.activations.linear)
        return None if linear else operation.activation
    return operation


def _idempotent(function):
    """Whether a function of one tensor leaves its own values alone, on samples."""
    if isinstance(function, keras.layers.PReLU):
        # Its slopes are weights: they do not stay what they are.
        return False
    samples = np.concatenate([np.linspace(-9, 9, 257), np.geomspace(9, 1e4, 64)])
    values = function(ops.convert_to_tensor(samples[None], "float32"))
    again = function(values)
    return bool((ops.convert_to_numpy(again) == ops.convert_to_numpy(values)).all())


def _free_name(name, taken):
    new = f"{name}_deeper"
    while new in taken:
        new += "_deeper"
    taken.add(new)
    return new


def _geometry(layer):
    """What of a convolution's arguments the new one has its own of."""
    if isinstance(layer, keras.layers.Dense):
        return {}
    padding = "causal" if layer.padding == "causal" else "same"
    return {"strides": 1, "dilation_rate": 1, "padding": padding}


def _identity(layer):
    """Values of the variables of a layer of the same width that hands its inputs on."""
    width = layer.kernel.shape[-1]
    if isinstance(layer, keras.layers.Dense):
        kernel = np.eye(width, dtype="float32")
    else:
        size, outputs = layer.kernel_size, np.arange(width)
        kernel = np.zeros((*size, width // layer.groups, width), "float32")
        # Where a window's own position is: at its end, or where "same" puts it in an even size.
        own = tuple(n - 1 if layer.padding == "causal" else (n - 1) // 2 for n in size)
        kernel[(*own, outputs % kernel.shape[-2], outputs)] = 1.0
    return [kernel] if layer.bias is None else [kernel, np.zeros(width, "float32")]


def _undone(layer, moments):
    """Values of a batch normalization's variables with which it hands its inputs on."""
    shape = layer.moving_mean.shape
    mean, variance = moments or (np.zeros(shape), np.ones(shape))
    # What has no gamma or beta to undo it must be neutral.
    if not layer.scale:
        variance = np.full_like(mean, 1.0 - layer.epsilon)
    if not layer.center:
        mean = np.zeros_like(mean)
    values = {
        "gamma": np.sqrt(variance + layer.epsilon),
        "beta": mean,
        "moving_mean": mean,
        "moving_variance": variance,
        # Of batch renormalization.
        "moving_stddev": np.sqrt(variance),
        "renorm_mean": mean,
        "renorm_stddev": np.sqrt(variance),
    }
    return [values[variable.name] for variable in layer.variables]


def _moments(graph, call, axis, samples):
    """Mean and variance over samples of each channel on an axis of what a call gives."""
    observer = Observer(graph, [call.output])
    sums = 0.0
    for inputs, _ in samples:
        tensor = np.moveaxis(observer.activations(inputs)[0], axis, -1)
        rows = tensor.astype("float64").reshape(-1, tensor.shape[-1])
        sums = sums + np.array([np.ones(rows.shape[1]) * len(rows), rows.sum(0), (rows**2).sum(0)])
    count, first, second = sums
    mean = first / count
    return mean, np.maximum(second / count - mean**2, 0.0)
