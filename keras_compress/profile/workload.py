"""`Workload`: the products that a layer takes, for models of what they cost."""

import dataclasses
import functools
import math

import keras
import numpy as np

from keras_compress.profile.macs import layer_macs, open_shape


@dataclasses.dataclass(frozen=True)
class Workload:
    """One product of weights with inputs: a convolution, of which a dense layer is a case.

    Attributes:
        positions: How often each weight is used for one sample.
        rows: Rows of the output's map; 1 where it has none.
        kernel: Height and width of the kernel.
        channels: Input channels of a group.
        filters: Output channels of a group.
        groups: Number of groups.
        weights: Number of weights that are not zero.
        inputs: Number of input values.
        outputs: Number of output values.
    """

    positions: int
    rows: int
    kernel: tuple
    channels: int
    filters: int
    groups: int
    weights: int
    inputs: int
    outputs: int

    @property
    def macs(self):
        """Multiply-accumulates with weights that are not zero."""
        return self.positions * self.weights


class Weights:
    """Sizes of variables as they are; another class may say what they would be."""

    def shape(self, variable):
        """Shape of a variable."""
        return tuple(variable.shape)

    def nonzeros(self, variable):
        """Number of its elements that are not zero."""
        return int(np.count_nonzero(keras.ops.convert_to_numpy(variable)))


def workloads(call, weights=None):
    """The products of one call of a layer, for one sample.

    Args:
        call: `LayerCall`.
        weights: `Weights`, or an object like it.

    Returns:
        List of `Workload`; empty for layers that are not counted in `kc.profile.macs`.
    """
    try:
        return _of_layer(call.layer, call, weights or Weights())
    except TypeError as error:
        if None not in (d for s in (*call.input_shapes, call.output_shape) for d in s[1:]):
            raise
        raise open_shape(call) from error


@functools.singledispatch
def _of_layer(layer, call, weights):
    """Any other layer: all its kernels are used equally often."""
    kernels = [v for v in layer.trainable_weights if len(v.shape) > 1]
    macs = layer_macs(layer, call) if kernels else 0
    if not macs:
        return []
    size = sum(math.prod(v.shape) for v in kernels)
    return [
        _product(weights, v, math.ceil(macs / size), math.prod(weights.shape(v)[:-1]))
        for v in kernels
    ]


def _product(weights, variable, positions, channels):
    """A `Workload` of a matrix product."""
    size = math.prod(weights.shape(variable))
    filters = size // channels
    return Workload(
        positions,
        1,
        (1, 1),
        channels,
        filters,
        1,
        weights.nonzeros(variable),
        positions * channels,
        positions * filters,
    )


@_of_layer.register(keras.layers.Dense)
def _(layer, call, weights):
    positions = math.prod(call.input_shapes[0][1:-1])
    return [_product(weights, layer.kernel, positions, weights.shape(layer.kernel)[0])]


@_of_layer.register(keras.layers.EinsumDense)
def _(layer, call, weights):
    letters, kernel, result = layer.equation.replace(" ", "").replace("->", ",").split(",")
    sizes = dict(zip(kernel, weights.shape(layer.kernel), strict=True))
    # Letters that stay are positions or groups of small products; the rest is summed over.
    channels = math.prod(sizes[letter] for letter in kernel if letter not in result)
    positions = layer_macs(layer, call) // math.prod(layer.kernel.shape)
    return [_product(weights, layer.kernel, positions, channels)]


@_of_layer.register(keras.layers.Conv1D)
@_of_layer.register(keras.layers.Conv2D)
@_of_layer.register(keras.layers.Conv3D)
def _(layer, call, weights):
    *taps, channels, filters = weights.shape(layer.kernel)
    groups = layer.groups
    if groups > 1 and layer.kernel.shape[-2] == 1:
        # As many groups as channels.
        groups = filters * groups // layer.filters
    sizes = (taps, channels, filters // groups, groups)
    return [_convolution(layer, call, *sizes, weights.nonzeros(layer.kernel))]


@_of_layer.register(keras.layers.DepthwiseConv1D)
@_of_layer.register(keras.layers.DepthwiseConv2D)
def _(layer, call, weights):
    *taps, channels, multiplier = weights.shape(layer.kernel)
    return [
        _convolution(layer, call, taps, 1, multiplier, channels, weights.nonzeros(layer.kernel))
    ]


@_of_layer.register(keras.layers.SeparableConv1D)
@_of_layer.register(keras.layers.SeparableConv2D)
def _(layer, call, weights):
    first, second = layer.depthwise_kernel, layer.pointwise_kernel
    *taps, channels, multiplier = weights.shape(first)
    nonzeros = weights.nonzeros(first)
    depthwise = _convolution(layer, call, taps, 1, multiplier, channels, nonzeros)
    *taps, channels, filters = weights.shape(second)
    nonzeros = weights.nonzeros(second)
    pointwise = _convolution(layer, call, taps, channels, filters, 1, nonzeros)
    return [
        depthwise,
        dataclasses.replace(pointwise, inputs=pointwise.positions * channels),
    ]


@_of_layer.register(keras.layers.Conv1DTranspose)
@_of_layer.register(keras.layers.Conv2DTranspose)
@_of_layer.register(keras.layers.Conv3DTranspose)
def _(layer, call, weights):
    *taps, filters, channels = weights.shape(layer.kernel)
    one = _convolution(layer, call, taps, channels, filters, 1, weights.nonzeros(layer.kernel))
    lengths = _lengths(layer, call.input_shapes[0])
    # The kernel is used once at each position of the input.
    return [dataclasses.replace(one, positions=math.prod(lengths), rows=_rows(lengths))]


@_of_layer.register(keras.layers.SimpleRNN)
@_of_layer.register(keras.layers.LSTM)
@_of_layer.register(keras.layers.GRU)
def _(layer, call, weights):
    steps = call.input_shapes[0][1]
    return [
        _product(weights, kernel, steps, weights.shape(kernel)[0])
        for kernel in (layer.cell.kernel, layer.cell.recurrent_kernel)
    ]


@_of_layer.register(keras.layers.Bidirectional)
def _(layer, call, weights):
    return [
        one
        for inner in (layer.forward_layer, layer.backward_layer)
        for one in _of_layer(inner, call, weights)
    ]


@_of_layer.register(keras.layers.TimeDistributed)
def _(layer, call, weights):
    shape = call.input_shapes[0]
    inner = dataclasses.replace(
        call,
        layer=layer.layer,
        input_shapes=((shape[0], *shape[2:]),),
        output_shape=(call.output_shape[0], *call.output_shape[2:]),
    )
    return [
        dataclasses.replace(
            one,
            positions=one.positions * shape[1],
            inputs=one.inputs * shape[1],
            outputs=one.outputs * shape[1],
        )
        for one in _of_layer(layer.layer, inner, weights)
    ]


@_of_layer.register(keras.layers.MultiHeadAttention)
def _(layer, call, weights):
    query = call.input_shapes[0]
    value = call.input_shapes[1] if len(call.input_shapes) > 1 else query
    queries, keys = (math.prod(shape[1:-1]) for shape in (query, value))
    width, heads, key_dim = weights.shape(layer.query_dense.kernel)
    value_dim = layer.value_dim or key_dim
    products = [
        _product(weights, part.kernel, positions, channels)
        for part, positions, channels in (
            (layer.query_dense, queries, width),
            (layer.key_dense, keys, weights.shape(layer.key_dense.kernel)[0]),
            (layer.value_dense, keys, weights.shape(layer.value_dense.kernel)[0]),
            (layer.output_dense, queries, heads * value_dim),
        )
    ]
    # Products of activations: the keys, then the values, take the place of the weights.
    for channels, filters in ((key_dim, keys), (keys, value_dim)):
        size, inputs = heads * channels * filters, heads * queries * channels
        products.append(
            Workload(
                queries,
                1,
                (1, 1),
                channels,
                filters,
                heads,
                size,
                inputs,
                heads * queries * filters,
            )
        )
    return products


def _convolution(layer, call, taps, channels, filters, groups, nonzeros):
    outputs = _lengths(layer, call.output_shape)
    positions = math.prod(outputs)
    inputs = math.prod(_lengths(layer, call.input_shapes[0]))
    # A volume is taken slice by slice; a sequence has one row.
    height, width = (1, taps[0]) if len(taps) == 1 else (math.prod(taps[:-1]), taps[-1])
    return Workload(
        positions,
        _rows(outputs),
        (height, width),
        channels,
        filters,
        groups,
        nonzeros,
        inputs * channels * groups,
        positions * filters * groups,
    )


def _lengths(layer, shape):
    return shape[1:-1] if layer.data_format == "channels_last" else shape[2:]


def _rows(lengths):
    return math.prod(lengths[:-1])
