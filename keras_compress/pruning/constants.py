"""`Constants`: the elements of a model's tensors that are the same whatever the input is."""

import keras
import numpy as np
from keras import ops

from keras_compress.call_graph import Value
from keras_compress.convert import new_like
from keras_compress.layers.maxout_conv2d import MaxoutConv2D
from keras_compress.layers.maxout_dense import MaxoutDense

#: Layers that sum products of their input with kernels, of which a zero says that it is not read.
LINEAR = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    MaxoutDense,
    MaxoutConv2D,
    *(
        getattr(keras.layers, f"Conv{rank}D{kind}")
        for rank in (1, 2, 3)
        for kind in ("", "Transpose")
    ),
    *(
        getattr(keras.layers, f"{kind}Conv{rank}D")
        for kind in ("Depthwise", "Separable")
        for rank in (1, 2)
    ),
)
_POINTWISE = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.PReLU,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
    keras.layers.Identity,
    keras.layers.Add,
    keras.layers.Subtract,
    keras.layers.Multiply,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Minimum,
)
# Of keras.ops, which has no public name for their classes.
_POINTWISE_OPERATIONS = (
    *("Abs", "Add", "Subtract", "Multiply", "Maximum", "Minimum", "Negative", "Square", "Cast"),
    *("Elu", "Gelu", "LeakyRelu", "Relu", "Relu6", "Selu", "Sigmoid", "Silu", "Tanh", "Clip"),
)
# What moves, copies, averages or compares elements: of flags (0 or 1) it gives more than 0 where a
# flag had a part in it.
_MOVING = (
    *(
        getattr(keras.layers, f"{name}{rank}D")
        for name in ("MaxPooling", "AveragePooling", "ZeroPadding", "Cropping")
        for rank in (1, 2, 3)
    ),
    *(
        getattr(keras.layers, f"Global{name}Pooling{rank}D")
        for name in ("Max", "Average")
        for rank in (1, 2, 3)
    ),
    keras.layers.UpSampling1D,
    keras.layers.UpSampling3D,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.RepeatVector,
    keras.layers.Concatenate,
)
_MOVING_OPERATIONS = (
    "Reshape",
    "Transpose",
    "ExpandDims",
    "Squeeze",
    "Concatenate",
    "GetItem",
    "Mean",
)
_MIXING = ("softmax", "log_softmax", "sparsemax", "glu")
#: In the place of an open size, where only zeros are followed.
_OPEN = 96


class Constants:
    """Follows through a model what does not depend on its input.

    A filter of zeros gives its bias everywhere, an activation or a batch normalisation makes
    another constant of that, and a kernel that is zero for all channels but constant ones gives
    constants again. They are computed by the model's own layers, with zeros in the place of what is
    not known. Layers that are not known give nothing that is.

    Where sizes of the input are open, only zeros are followed: at the borders of padded maps other
    constants depend on the size.

    Args:
        model: The model. Its layers run in inference mode.
        graph: Its `CallGraph`.
    """

    def __init__(self, model, graph):
        sizes = [size for value in graph.inputs for size in value.shape[1:]]
        self._zeros_only = None in sizes
        self._table = {}
        for value, tensor in zip(graph.inputs, model.inputs, strict=True):
            shape = [1, *(_OPEN if size is None else size for size in value.shape[1:])]
            self._table[value] = np.zeros(shape, tensor.dtype), np.ones(shape, bool)
        for call in graph.calls:
            self._follow(call)

    def values(self, value):
        """Array of a `Value`'s elements for one sample, batch axis first; 0 where not known."""
        return self._table[value][0]

    def known(self, value):
        """Boolean array of the same shape: what does not depend on the input."""
        return ~self._table[value][1]

    def _follow(self, call):
        def constant(leaf):
            if not isinstance(leaf, Value):
                return leaf
            return ops.convert_to_tensor(self._table[leaf][0])

        args, kwargs = keras.tree.map_structure(constant, (call.args, call.kwargs))
        outputs = keras.tree.flatten(call.operation(*args, **kwargs))
        outputs = [ops.convert_to_numpy(output) for output in outputs]
        unknown = self._unknown(call, outputs)
        for value, output in zip(call.outputs, outputs, strict=True):
            flags = np.ones(output.shape, bool) if unknown is None else unknown
            if self._zeros_only:
                flags = flags | (output != 0)
            # An infinite constant is none to add to a bias.
            flags = flags | ~np.isfinite(output)
            self._table[value] = np.where(flags, np.zeros_like(output), output), flags

    def _unknown(self, call, outputs):
        """Which elements of a call's one output depend on the input; `None` for all."""
        operation = call.operation
        if len(outputs) > 1 or not call.inputs or _mixes(operation):
            return None
        flags = [self._table[value][1] for value in call.inputs]
        if is_linear(operation):
            return _reach(operation, flags[0])
        if _is(operation, _POINTWISE, _POINTWISE_OPERATIONS):
            if not _plain_arguments(call):
                return None
            unknown = np.zeros(outputs[0].shape, bool)
            for flag in flags:
                unknown = unknown | flag
            if type(operation).__name__ == "Multiply":
                for value, flag in zip(call.inputs, flags, strict=True):
                    # Nothing times a known zero depends on anything.
                    unknown = unknown & (flag | (self._table[value][0] != 0))
            return unknown
        if _is(operation, _MOVING, _MOVING_OPERATIONS):

            def flagged(leaf):
                if not isinstance(leaf, Value):
                    return leaf
                return ops.convert_to_tensor(self._table[leaf][1].astype("float32"))

            args, kwargs = keras.tree.map_structure(flagged, (call.args, call.kwargs))
            return ops.convert_to_numpy(operation(*args, **kwargs)) > 0
        return None


def is_linear(layer):
    """Whether a layer sums products with its kernels and nothing else."""
    # A LoRA or quantized layer computes with more than its kernel.
    extra = getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None)
    return type(layer) in LINEAR and not extra


def linear_part(layer, change=lambda kernel: kernel):
    """A copy of a linear layer without bias and activation.

    Args:
        layer: The layer.
        change: Function of each kernel's array.
    """
    config = {**layer.get_config(), "use_bias": False}
    if isinstance(layer, keras.layers.EinsumDense):
        config = {**layer.get_config(), "bias_axes": None}
    if "activation" in config:
        config["activation"] = None
    config["dtype"] = "float32"
    new = new_like(layer, config)
    new.build(layer._build_shapes_dict["input_shape"])
    kernels = [v for v in layer.weights if v is not layer.bias]
    for variable, kernel in zip(new.weights, kernels, strict=True):
        variable.assign(change(ops.convert_to_numpy(kernel)))
    return new


def _reach(layer, flags):
    """Where a linear layer's outputs are sums of something that is flagged."""
    indicator = linear_part(layer, lambda kernel: (kernel != 0).astype("float32"))
    # Half: fast convolutions leave a trace of rounding where zeros belong.
    return ops.convert_to_numpy(indicator(flags.astype("float32"))) > 0.5


def _is(operation, layers, operations):
    if isinstance(operation, keras.layers.Layer):
        return type(operation) in layers
    return type(operation).__name__ in operations


def _mixes(operation):
    """Whether an activation looks at several elements at once, or is not known."""
    activation = getattr(operation, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__)
    known = activation is None or (getattr(activation, "__module__", "") or "").startswith("keras.")
    return not known or name in _MIXING


def _plain_arguments(call):
    flat = keras.tree.flatten((call.args, call.kwargs))
    return all(isinstance(leaf, Value) or np.ndim(leaf) == 0 for leaf in flat)
