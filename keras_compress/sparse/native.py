"""What lies between sparse layers, on arrays in the order of axes that these have."""

import keras
import numpy as np

from keras_compress.ops.windows import axes_of

_IDENTITIES = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.GaussianNoise,
    keras.layers.GaussianDropout,
    keras.layers.Identity,
)


def native(call):
    """A function of `Tensor`s that computes a call on arrays `(height, channels, width, batch)`.

    Args:
        call: `Call` whose inputs are all in that order.

    Returns:
        The function, or `None` if Keras is to run the call.
    """
    layer, images = call.operation, len(call.inputs[0].shape) == 4
    function = None
    if type(layer) in _IDENTITIES:
        return lambda x: x
    if _is_relu(layer):
        function = _relu
    elif type(layer) is keras.layers.Add:
        function = _add
    elif images and getattr(layer, "data_format", None) == "channels_last":
        if type(layer) is keras.layers.Flatten:
            function = _flatten
        elif type(layer) is keras.layers.GlobalAveragePooling2D and not layer.keepdims:
            function = _global_average
        elif type(layer) is keras.layers.MaxPooling2D:
            function = _pooling(layer, np.maximum, -np.inf)
        elif type(layer) is keras.layers.AveragePooling2D and layer.padding == "valid":
            function = _pooling(layer, np.add, 0.0, 1 / np.prod(layer.pool_size))
    if function is None:
        return None

    def run(*tensors):
        return type(tensors[0])(inner=function(*(tensor.inner() for tensor in tensors)))

    return run


def _is_relu(layer):
    if type(layer) is keras.layers.ReLU:
        return layer.max_value is None and layer.negative_slope == 0 and layer.threshold == 0
    return type(layer) is keras.layers.Activation and layer.activation is keras.activations.relu


def _relu(x):
    return np.maximum(x, 0)


def _add(*arrays):
    return sum(arrays[1:], start=arrays[0])


def _flatten(x):
    # Keras counts a row's positions before its channels.
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(-1, x.shape[-1])


def _global_average(x):
    return x.mean((0, 2))


def _pooling(layer, combine, fill, scale=None):
    def pool(x):
        height, channels, width, batch = x.shape
        geometry = (layer.pool_size, layer.strides, layer.padding)
        rows, columns = axes_of((height, width), *geometry, owner=layer.name)
        if any((*rows.pads, *columns.pads)):
            pads = (rows.pads, (0, 0), columns.pads, (0, 0))
            x = np.pad(x, pads, constant_values=fill)
        # First along the height, where rows lie together.
        tall = x[rows.tap(0)]
        for h in range(1, rows.kernel):
            tall = combine(tall, x[rows.tap(h)])
        wide = tall[:, :, columns.tap(0)]
        for w in range(1, columns.kernel):
            wide = combine(wide, tall[:, :, columns.tap(w)])
        return np.ascontiguousarray(wide) if scale is None else wide * np.float32(scale)

    return pool
