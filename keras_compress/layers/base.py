"""The protocol of compressed layers: what every drop-in layer of this package can do.

A compressed layer replaces one stock Keras layer (`source`) whose kernel it stores in another
form. A new layer subclasses `CompressedDense` or `CompressedConv2D` and writes only what differs:

    build_kernel(input_channels)     creates the stored form with `add_kernel_weight`
    apply_kernel(inputs)             the product (or convolution) with the stored form
    reconstruct_kernel()             numpy array: the kernel of the equivalent stock layer
    fit_kernel(kernel, ...)          classmethod: trained kernel -> (constructor arguments, weights)
    kernel_macs(...)                 multiply-accumulates of `apply_kernel`
    kernel_bits()                    only where the stored form is not plain floats

Bias, activation, configuration, `from_layer`, `expand`, `storage_bits` and `macs` follow.
"""

import math

import keras
from keras import ops

from keras_compress import validation


def dtype_bits(dtype):
    """Bits of one element of a Keras dtype name, e.g. 16 for `"bfloat16"`."""
    digits = "".join(c for c in keras.backend.standardize_dtype(dtype) if c.isdigit())
    return int(digits) if digits else 8


def initializer_stddev(initializer, fan_in, fan_out):
    """Standard deviation that a random Keras initializer gives a dense kernel.

    Layers that store factors use it so that the *product* of the factors has the spread asked for
    by `kernel_initializer`.

    Raises:
        ValueError: if the initializer is not a zero-mean random one.
    """
    initializer = keras.initializers.get(initializer)
    if isinstance(initializer, keras.initializers.VarianceScaling):
        fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        return math.sqrt(initializer.scale / max(1.0, fans[initializer.mode]))
    if isinstance(
        initializer, (keras.initializers.RandomNormal, keras.initializers.TruncatedNormal)
    ):
        return initializer.stddev
    if isinstance(initializer, keras.initializers.RandomUniform):
        return (initializer.maxval - initializer.minval) / math.sqrt(12.0)
    raise ValueError(
        "`kernel_initializer` describes the spread of the dense kernel that the stored form stands "
        "for, so it must be a random initializer (VarianceScaling and its kin, RandomNormal, "
        f"TruncatedNormal, RandomUniform); got kernel_initializer={initializer!r}. Use from_layer() "
        "to start from given weights."
    )


class CompressedLayer(keras.layers.Layer):
    """Base of all layers that stand in for a stock Keras layer with a kernel and a bias.

    Not used directly: see `CompressedDense` and `CompressedConv2D`.

    Args:
        activation: Activation function, as in Keras.
        use_bias: Whether a bias is added.
        kernel_initializer: Spread of the dense kernel that the stored form stands for.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of each stored kernel weight.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        kernel_constraint: Constraint of each stored kernel weight.
        bias_constraint: Constraint of the bias.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.
    """

    #: The stock class this layer replaces, and its arguments that carry over both ways.
    source = None
    source_arguments = ()
    _carried = (
        "name",
        "trainable",
        "dtype",
        "activation",
        "use_bias",
        "kernel_initializer",
        "bias_initializer",
        "bias_regularizer",
        "activity_regularizer",
        "bias_constraint",
    )

    def __init__(
        self,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.kernel_weights = []
        self.bias = None

    # What a subclass writes.

    def build_kernel(self, input_channels):
        """Creates the stored form for a source kernel with `input_channels` inputs."""
        raise NotImplementedError

    def apply_kernel(self, inputs):
        """Product (or convolution) of `inputs` with the stored form, without bias."""
        raise NotImplementedError

    def reconstruct_kernel(self):
        """Returns the dense kernel as a numpy array in the source layer's layout."""
        raise NotImplementedError

    @classmethod
    def fit_kernel(cls, kernel, **options):
        """Fits the stored form to a trained kernel.

        Args:
            kernel: numpy array in the source layer's layout.
            **options: the layer's own constructor arguments.

        Returns:
            `(arguments, values)`: constructor arguments of the layer (ranks made explicit) and the
            arrays to assign to `kernel_weights`, in order.
        """
        raise NotImplementedError

    def kernel_bits(self):
        """Bits of the stored kernel: by default, of `kernel_weights` as they are."""
        return sum(math.prod(w.shape) * dtype_bits(w.dtype) for w in self.kernel_weights)

    # What every layer gets from it.

    def add_kernel_weight(self, name, shape, initializer, **kwargs):
        """Adds one weight of the stored form; regularizer and constraint of the kernel apply."""
        weight = self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            **kwargs,
        )
        self.kernel_weights.append(weight)
        return weight

    def normal_initializer(self, stddev, index=0):
        """Normal initializer of one stored weight.

        A fresh instance for each weight: one Keras initializer called twice gives equal values. A
        seed set on `kernel_initializer` is kept, moved on by `index`.
        """
        config = self.kernel_initializer.get_config()
        seed = config.get("seed")
        return keras.initializers.RandomNormal(
            stddev=stddev, seed=seed + index if isinstance(seed, int) else None
        )

    def build(self, input_shape):
        channels = input_shape[self._channel_axis]
        if channels is None:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' needs the size of axis {self._channel_axis} "
                f"of its input; got input_shape={tuple(input_shape)}. Give `keras.Input` a shape "
                "whose channel axis is a number."
            )
        self.input_channels = int(channels)
        self.build_kernel(self.input_channels)
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self._output_channels,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.input_spec = keras.layers.InputSpec(
            min_ndim=self._min_ndim, axes={self._channel_axis: self.input_channels}
        )
        self.built = True

    def call(self, inputs):
        outputs = self.apply_kernel(inputs)
        if self.bias is not None:
            outputs = ops.add(outputs, self._shaped_bias())
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def _shaped_bias(self):
        return self.bias

    @classmethod
    def from_layer(cls, layer, **options):
        """Starts from a trained Keras layer: fitted, not random.

        Name, activation, bias, dtype policy and `trainable` carry over; the kernel's regularizer
        and constraint do not, since they speak of a kernel that is no longer stored.

        Args:
            layer: A built layer of class `cls.source`.
            **options: The arguments that this class adds to its source's, and any of the source's
                to change.

        Returns:
            A built layer of this class.

        Raises:
            ValueError: if `layer` is of another class or not built.
        """
        source = cls.source
        if not isinstance(layer, source):
            raise ValueError(
                f"{cls.__name__}.from_layer() starts from a keras.layers.{source.__name__}; got "
                f"{type(layer).__name__} '{getattr(layer, 'name', layer)}'."
            )
        if not layer.built:
            raise ValueError(
                f"{cls.__name__}.from_layer() needs a built layer: call {source.__name__} "
                f"'{layer.name}' on an input, or its build(), first."
            )
        config = layer.get_config()
        carried = {key: config[key] for key in (*cls._carried, *cls.source_arguments)}
        changed = {key: options.pop(key) for key in list(options) if key in carried}
        arguments, values = cls.fit_kernel(
            keras.ops.convert_to_numpy(layer.kernel).astype("float32"), **options
        )
        new = cls.from_config({**carried, **arguments, **changed})
        new.build(cls._source_input_shape(layer))
        for weight, value in zip(new.kernel_weights, values, strict=True):
            weight.assign(value)
        if new.bias is not None and layer.bias is not None:
            new.bias.assign(layer.bias)
        return new

    def expand(self):
        """Returns the equivalent stock Keras layer, with the reconstructed kernel.

        Raises:
            ValueError: if the layer is not built.
        """
        self.check_built("expand")
        config = self.get_config()
        carried = (*self._carried, *self.source_arguments)
        layer = self.source.from_config({key: config[key] for key in carried})
        layer.build(self._build_shape())
        layer.kernel.assign(self.reconstruct_kernel())
        if self.bias is not None:
            layer.bias.assign(self.bias)
        return layer

    def storage_bits(self):
        """Bits that the stored form needs: kernel (codebooks and indices included) and bias."""
        self.check_built("storage_bits")
        bias = 0 if self.bias is None else self.bias.shape[0] * dtype_bits(self.bias.dtype)
        return int(self.kernel_bits() + bias)

    def export_form(self):
        """The layer that a .tflite stores in this layer's place.

        By default the layer itself, as structured operations. A layer whose stored form does not
        survive conversion as it is (a spectrum computed from a vector, say) returns a layer that
        computes the same from weights in the form to be stored.
        """
        return self

    def check_built(self, method):
        """Raises `ValueError` if the layer has no weights yet."""
        if not self.built:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' is not built: call it on an input (or its "
                f"build()) before {method}()."
            )

    def get_config(self):
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }


class CompressedDense(CompressedLayer):
    """Base of layers that replace `keras.layers.Dense`.

    Args:
        units: Size of the output.
        **kwargs: See `CompressedLayer`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.
    """

    source = keras.layers.Dense
    source_arguments = ("units",)
    _channel_axis = -1
    _min_ndim = 2

    def __init__(self, units, activation=None, use_bias=True, **kwargs):
        super().__init__(activation=activation, use_bias=use_bias, **kwargs)
        self.units = validation.positive_int("units", units, self)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def kernel_macs(self):
        """Multiply-accumulates of `apply_kernel` for one row of the input."""
        raise NotImplementedError

    def macs(self, input_shape=None):
        """Multiply-accumulates of one sample through the compressed form.

        Args:
            input_shape: `(batch, ..., input_dim)`; the batch size is ignored. `None` means one row.
        """
        self.check_built("macs")
        rows = 1 if input_shape is None else math.prod(input_shape[1:-1])
        return int(rows * self.kernel_macs())

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    @property
    def _output_channels(self):
        return self.units

    def _build_shape(self):
        return (None, self.input_channels)

    @classmethod
    def _source_input_shape(cls, layer):
        return (None, layer.kernel.shape[0])

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class CompressedConv2D(CompressedLayer):
    """Base of layers that replace `keras.layers.Conv2D`.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Number of groups; 1 unless the subclass says otherwise.
        **kwargs: See `CompressedLayer`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.
    """

    source = keras.layers.Conv2D
    source_arguments = (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "data_format",
        "dilation_rate",
        "groups",
    )
    _min_ndim = 4

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        data_format=None,
        dilation_rate=(1, 1),
        groups=1,
        activation=None,
        use_bias=True,
        **kwargs,
    ):
        super().__init__(activation=activation, use_bias=use_bias, **kwargs)
        self.filters = validation.positive_int("filters", filters, self)
        self.kernel_size = _pair("kernel_size", kernel_size, self)
        self.strides = _pair("strides", strides, self)
        self.dilation_rate = _pair("dilation_rate", dilation_rate, self)
        self.padding = validation.one_of(
            "padding",
            padding.lower() if isinstance(padding, str) else padding,
            ("valid", "same"),
            self,
        )
        self.data_format = validation.one_of(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
            self,
        )
        self.groups = validation.positive_int("groups", groups, self)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                f"{type(self).__name__}: `strides` > 1 does not go with `dilation_rate` > 1; got "
                f"strides={self.strides}, dilation_rate={self.dilation_rate}."
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=4)

    def kernel_macs(self, input_size, output_size):
        """Multiply-accumulates of `apply_kernel` for one sample.

        Args:
            input_size: `(height, width)` of the input.
            output_size: `(height, width)` of the output.
        """
        raise NotImplementedError

    def macs(self, input_shape):
        """Multiply-accumulates of one sample through the compressed form.

        Args:
            input_shape: `(batch, height, width, channels)`, or channels first; the batch size is
                ignored.
        """
        self.check_built("macs")
        output_shape = self.compute_output_shape(input_shape)
        return int(self.kernel_macs(self._size(input_shape), self._size(output_shape)))

    def compute_output_shape(self, input_shape):
        size = tuple(
            conv_output_length(length, kernel, stride, self.padding, dilation)
            for length, kernel, stride, dilation in zip(
                self._size(input_shape),
                self.kernel_size,
                self.strides,
                self.dilation_rate,
                strict=True,
            )
        )
        if self.data_format == "channels_last":
            return (input_shape[0], *size, self.filters)
        return (input_shape[0], self.filters, *size)

    def _size(self, shape):
        return tuple(shape[1:3] if self.data_format == "channels_last" else shape[2:4])

    @property
    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    @property
    def _output_channels(self):
        return self.filters

    def _shaped_bias(self):
        if self.data_format == "channels_last":
            return self.bias
        return ops.reshape(self.bias, (1, self.filters, 1, 1))

    def _build_shape(self):
        if self.data_format == "channels_last":
            return (None, None, None, self.input_channels)
        return (None, self.input_channels, None, None)

    @classmethod
    def _source_input_shape(cls, layer):
        channels = layer.kernel.shape[2] * layer.groups
        if layer.data_format == "channels_last":
            return (None, None, None, channels)
        return (None, channels, None, None)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
        }


def conv_output_length(length, kernel, stride, padding, dilation=1):
    """Output length of a convolution along one axis; `None` stays `None`."""
    if length is None:
        return None
    if padding == "same":
        return -(-length // stride)
    return max(0, (length - dilation * (kernel - 1) - 1) // stride + 1)


def _pair(name, value, owner):
    values = validation.positive_ints(
        name, value if hasattr(value, "__iter__") else (value,), owner
    )
    if len(values) == 1:
        values = values * 2
    if len(values) != 2:
        raise ValueError(
            f"{type(owner).__name__}: `{name}` must be an integer or a pair of integers; got "
            f"{name}={value!r}."
        )
    return values
