"""What each layer is to quantization-aware training: which have kernels, which grids they keep."""

import keras

from keras_compress.layers.channel_shuffle import ChannelShuffle
from keras_compress.layers.fake_quant_conv2d import FakeQuantConv2D
from keras_compress.layers.fake_quant_dense import FakeQuantDense
from keras_compress.layers.fake_quant_depthwise_conv2d import FakeQuantDepthwiseConv2D

KERNELS = {
    keras.layers.Dense: FakeQuantDense,
    keras.layers.Conv2D: FakeQuantConv2D,
    keras.layers.DepthwiseConv2D: FakeQuantDepthwiseConv2D,
}

#: Layers that give values of their input (or zero): these stay on its grid.
_SAME_VALUES = (
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
    keras.layers.Identity,
    ChannelShuffle,
)
#: Layers that average values: LiteRT rounds the results to the grid of the input.
_SAME_GRID = (keras.layers.AveragePooling1D, keras.layers.AveragePooling2D)
#: Layers of several inputs, which LiteRT wants on the grid of the output.
_SHARED_GRID = (keras.layers.Concatenate, keras.layers.Maximum, keras.layers.Minimum)
_MEANS = (keras.layers.GlobalAveragePooling1D, keras.layers.GlobalAveragePooling2D)
_SUMS = (keras.layers.Add, keras.layers.Subtract, keras.layers.Multiply)
#: Names of the operations behind `x + y`, `x - y` and `x * y`.
_SUM_OPERATIONS = ("Add", "Subtract", "Multiply")

#: Activations that the converter fuses into the operation before them.
FUSED = ("linear", "relu", "relu6")
#: Activations whose output LiteRT has on a grid of their own.
_UNIT = (0.0, 255 / 256)
FIXED = {"sigmoid": _UNIT, "softmax": _UNIT, "tanh": (-1.0, 127 / 128)}
#: Activations that LiteRT computes in integers, from any grid to any grid.
_TABULATED = ("leaky_relu", "gelu", "hard_silu")

KNOWN = (*FUSED, *FIXED, *_TABULATED, "silu")

_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}


def has_kernel(layer):
    plain = type(layer) in KERNELS or type(layer) is keras.layers.SeparableConv2D
    # A LoRA or quantized layer computes with more than its kernel.
    extra = getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None)
    return plain and not extra


def kernel_names():
    return ", ".join(cls.__name__ for cls in (*KERNELS, keras.layers.SeparableConv2D))


def activation_name(function):
    """Name of an activation function as the tables above have it, or `"other"`."""
    if function is None:
        return "linear"
    name = keras.activations.serialize(function)
    return _ALIASES.get(name, name) if isinstance(name, str) else "other"


def activation_of(layer):
    """Name of the activation that a layer is, or `None` if it is another or none."""
    if type(layer) is keras.layers.Activation:
        return activation_name(layer.activation)
    if type(layer) is keras.layers.ReLU and not layer.threshold:
        if layer.negative_slope:
            return None if layer.max_value is not None else "leaky_relu"
        return {None: "relu", 6: "relu6"}.get(layer.max_value)
    if type(layer) is keras.layers.LeakyReLU:
        return "leaky_relu"
    if type(layer) is keras.layers.Softmax:
        return "softmax"
    return None


def kind_of(call):
    """What a call is to the quantiser: a word that `Rewriter` has a method for."""
    layer = call.operation
    if has_kernel(layer):
        return "kernel"
    one_input = len(call.inputs) == 1 and len(call.outputs) == 1
    if type(layer) is keras.layers.BatchNormalization and one_input:
        return "norm" if layer.axis in (-1, layer.input_spec.ndim - 1) else "float"
    if type(layer) in _SAME_VALUES:
        return "same_values"
    if type(layer) in _SAME_GRID:
        return "same_grid"
    if type(layer) in _SHARED_GRID:
        return "shared_grid"
    if type(layer) in _MEANS:
        return "mean"
    if type(layer) in _SUMS:
        return "sum"
    if not isinstance(layer, keras.layers.Layer):
        if _pads_with_zeros(call):
            return "same_values"
        of_two = type(layer).__name__ in _SUM_OPERATIONS and len(call.inputs) == 2
        return "sum" if of_two else "float"
    name = activation_of(layer)
    if name in KNOWN:
        return "activation" if one_input else "float"
    return "float"


def _pads_with_zeros(call):
    """Whether a call is `keras.ops.pad` with zeros: each grid has one."""
    operation = call.operation
    if type(operation).__name__ != "Pad" or operation.mode != "constant":
        return False
    return len(call.args) == 1 and not call.kwargs.get("constant_values")


def ends_in(call):
    """Name of the activation that the output of a call has gone through, or `None`."""
    layer = call.operation
    return activation_name(layer.activation) if has_kernel(layer) else activation_of(layer)
