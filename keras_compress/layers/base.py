"""The protocol of compressed layers: what every drop-in layer of this package can do.

A compressed layer replaces one stock Keras layer (`source`) whose kernel it stores in another
form. A new layer subclasses `CompressedDense` or `CompressedConv2D` and writes only what differs:

    build_kernel(input_channels)     creates the stored form with `add_kernel_weight`
    apply_kernel(inputs)             the product (or convolution) with the stored form
    reconstruct_kernel()             numpy array: the kernel of the equivalent stock layer
    fit_kernel(kernel, ...)          classmethod: trained kernel -> (constructor arguments, weights)
    kernel_macs(...)                 multiply-accumulates of `apply_kernel`
    kernel_bits()                    only where the stored form is not plain floats

A layer whose source has several kernels names them in `source_kernels`, takes them all in
`fit_kernel` and writes `reconstruct_kernels()`.

Bias, activation, configuration, `from_layer`, `expand`, `storage_bits` and `macs` follow.
"""

import math

import keras
from keras import ops


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
        f"TruncatedNormal, RandomUniform); got kernel_initializer={initializer!r}. Use "
        "from_layer() to start from given weights."
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
    #: Attributes of the stock layer that hold its kernels.
    source_kernels = ("kernel",)
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
        self._kernel_weights = []
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

    def reconstruct_kernels(self):
        """The dense kernels of the source layer, by `source_kernels`: numpy arrays."""
        return [self.reconstruct_kernel()]

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

    @property
    def kernel_weights(self):
        """Variables of the stored kernel, in the order in which `fit_kernel` gives their values."""
        return self._kernel_weights

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
        self._kernel_weights.append(weight)
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
                shape=(self._bias_size,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.input_spec = keras.layers.InputSpec(
            min_ndim=self._min_ndim, axes={self._channel_axis: self.input_channels}
        )
        self.built = True

    def call(self, inputs):
        return self.add_bias_and_activate(self.apply_kernel(inputs))

    def add_bias_and_activate(self, outputs):
        """What follows the kernel in every layer."""
        if self.bias is not None:
            outputs = ops.add(outputs, self._shaped_bias())
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def _shaped_bias(self):
        return self.bias

    # A layer whose channels share biases says how they and the source's come from one another.

    @property
    def _bias_size(self):
        return self._output_channels

    def _source_bias(self, bias):
        return bias

    def _stored_bias(self, bias):
        return bias

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
        names = (*cls._carried, *cls.source_arguments)
        carried = {name: config[name] for name in names if name in config}
        stock = (*names, "kernel_regularizer", "kernel_constraint")
        changed = {name: options.pop(name) for name in stock if name in options}
        kernels = [
            ops.convert_to_numpy(getattr(layer, name)).astype("float32")
            for name in cls.source_kernels
        ]
        arguments, values = cls.fit_kernel(*kernels, **options)
        new = cls.from_config({**carried, **arguments, **changed})
        new.build(cls._fitted_input_shape(layer, values))
        for weight, value in zip(new.kernel_weights, values, strict=True):
            weight.assign(value)
        if new.bias is not None and layer.bias is not None:
            new.bias.assign(new._stored_bias(ops.convert_to_numpy(layer.bias)))
        return new

    @classmethod
    def _fitted_input_shape(cls, layer, values):
        """Shape to build for what `fit_kernel` gave."""
        return cls._source_input_shape(layer)

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
        for name, kernel in zip(self.source_kernels, self.reconstruct_kernels(), strict=True):
            getattr(layer, name).assign(kernel)
        if self.bias is not None:
            layer.bias.assign(ops.convert_to_numpy(self._source_bias(self.bias)))
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
