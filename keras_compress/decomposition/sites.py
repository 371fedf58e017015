"""`sites_of`: the layers of a model that can be factorized, and what they cost either way."""

import functools
import math

import keras
import numpy as np
from keras import ops

from keras_compress import matching
from keras_compress.call_graph import CallGraph
from keras_compress.decomposition.decompose import FORMS
from keras_compress.layers import (
    FactorizedConv2D,
    FactorizedDense,
    SparseBasisConv2D,
    TernaryFactorizedConv2D,
    TernaryFactorizedDense,
)

#: Layers, dense and convolutional, that run a form; `None` stands for all other forms.
_LAYERS = {
    None: (FactorizedDense, FactorizedConv2D),
    "sparse_basis": (None, SparseBasisConv2D),
    "ternary": (TernaryFactorizedDense, TernaryFactorizedConv2D),
}


class Site:
    """A Dense layer, or a convolution of one group, in the graph of a model.

    Args:
        layer: The layer.
        calls: Its `Call`s.

    Attributes:
        adds_bias: Whether the factorized layer has a bias and the layer has none.
    """

    def __init__(self, layer, calls):
        self.layer, self.calls = layer, calls
        self.name = layer.name
        self.is_dense = isinstance(layer, keras.layers.Dense)
        self.kernel_shape = tuple(layer.kernel.shape)
        self.adds_bias = False

    @functools.cached_property
    def kernel(self):
        """The kernel, float32."""
        return ops.convert_to_numpy(ops.cast(self.layer.kernel, "float32"))

    @property
    def bias(self):
        """The bias, float64; zeros where the layer has none."""
        if not self.layer.use_bias:
            return np.zeros(self.kernel_shape[-1])
        return ops.convert_to_numpy(ops.cast(self.layer.bias, "float32")).astype("float64")

    @property
    def grid(self):
        """Grid that the inputs of a dense layer were flattened from, without the channels.

        `None` if they were not, or not once. An input of the model that has two axes is taken for
        an image without channels.
        """
        flatten = self.calls[0].inputs[0].call
        while flatten is not None and isinstance(flatten.operation, keras.layers.Dropout):
            flatten = flatten.inputs[0].call
        if len(self.calls) > 1 or flatten is None:
            return None
        source, shape = flatten.inputs[0], tuple(flatten.inputs[0].shape[1:])
        if not isinstance(flatten.operation, keras.layers.Flatten) or None in shape:
            return None
        if source.call is None and len(shape) == 2:
            return shape
        # Flatten puts channels last.
        first = flatten.operation.data_format == "channels_first"
        return (shape[1:] if first else shape[:-1]) or None

    def holds(self, form):
        """Whether a form can hold the kernel."""
        return form == "tt" or len(self.kernel_shape) in FORMS[form].kernel_ndims

    def cost(self, what):
        """Multiply-accumulates (`None` where a shape is open) or weights of the kernel."""
        if what != "macs":
            return math.prod(self.kernel_shape)
        positions = [math.prod(size) for _, size in self._sizes() if None not in size]
        if len(positions) < len(self.calls):
            return None
        return sum(positions) * math.prod(self.kernel_shape)

    def factorized_cost(self, what, form, ranks):
        """As `cost`, of factors of these ranks."""
        shapes = FORMS[form].shapes(self.kernel_shape, ranks)
        if what != "macs":
            weights = FORMS[form].weights(self.kernel_shape, ranks)
            return weights + (self.kernel_shape[-1] if self.adds_bias else 0)
        if self.cost("macs") is None:
            return None
        if self.is_dense:
            rows = sum(math.prod(size) for _, size in self._sizes())
            return rows * sum(map(math.prod, shapes))
        return sum(FORMS[form].macs(self.kernel_shape, ranks, *sizes) for sizes in self._sizes())

    def is_cheaper(self, form, ranks):
        """Whether factors of these ranks take less time or, where that is not known, less room.

        Ternary factors have more multiply-accumulates, nearly all of them additions: for them it
        is room.
        """
        what = "params" if form == "ternary" or self.cost("macs") is None else "macs"
        return self.factorized_cost(what, form, ranks) < self.cost(what)

    def replacement(self, factors, bias=None):
        """The factorized layer.

        Args:
            factors: `Factors`.
            bias: Array to be the bias, or `None` to keep what there is.
        """
        cls = _LAYERS[factors.form if factors.form in _LAYERS else None][not self.is_dense]
        options = {} if bias is None else {"use_bias": True}
        layer = cls.from_layer(self.layer, factors=factors, **options)
        if bias is not None:
            layer.bias.assign(bias)
        return layer

    def following(self):
        """What becomes of the outputs, when one thing does.

        Returns:
            `(scale, shift, relu)`: of a batch normalization that reads them, or `None`, and whether
            a ReLU comes after that.
        """
        activation = self.layer.activation
        if activation is keras.activations.relu:
            return None, None, True
        if activation is not keras.activations.linear or len(self.calls) != 1:
            return None, None, False
        scale = shift = None
        reader = self.calls[0].sole_reader
        norm = reader.operation if reader else None
        if isinstance(norm, keras.layers.BatchNormalization) and self._is_channel_axis(norm.axis):
            scale, shift = _affine(norm)
            reader = reader.sole_reader
        return scale, shift, reader is not None and _is_relu(reader.operation)

    def _is_channel_axis(self, axis):
        rank = len(self.calls[0].output.shape)
        first = not self.is_dense and self.layer.data_format == "channels_first"
        return axis % rank == (1 if first else rank - 1)

    def _sizes(self):
        """`(input size, output size)` of each call; of a dense layer, the axes between."""
        for call in self.calls:
            shapes = call.inputs[0].shape, call.output.shape
            if self.is_dense or self.layer.data_format == "channels_last":
                yield tuple(shape[1:-1] for shape in shapes)
            else:
                yield tuple(shape[2:] for shape in shapes)


def sites_of(model):
    """The `Site`s of a model, in the order in which they first run.

    Args:
        model: A built model with a graph.
    """
    leaves = {id(layer) for layer in matching.leaf_layers(model)}
    calls = {}
    for call in CallGraph(model).calls:
        layer = call.operation
        # Subclasses may compute something else.
        dense, convolution = type(layer) is keras.layers.Dense, type(layer) is keras.layers.Conv2D
        if id(layer) in leaves and (dense or (convolution and layer.groups == 1)):
            calls.setdefault(id(layer), (layer, []))[1].append(call)
    return [Site(*pair) for pair in calls.values()]


def _affine(norm):
    mean, variance = (
        ops.convert_to_numpy(v).astype("float64") for v in (norm.moving_mean, norm.moving_variance)
    )
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * ops.convert_to_numpy(norm.gamma)
    shift = -mean * scale
    if norm.center:
        shift = shift + ops.convert_to_numpy(norm.beta)
    return scale, shift


def _is_relu(operation):
    if isinstance(operation, keras.layers.ReLU):
        plain = operation.max_value is None and not operation.negative_slope
        return plain and not operation.threshold
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is keras.activations.relu
    return type(operation).__name__ == "Relu"
