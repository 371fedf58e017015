"""QuantSeparableConv2D: a separable convolution with quantised weights and inputs."""

import keras
from keras import ops

from keras_compress import quantizers, validation
from keras_compress.layers.compressed_conv2d import CompressedConv2D
from keras_compress.layers.compressed_convolution import CompressedConvolution
from keras_compress.layers.quant_conv2d import QuantConv2D
from keras_compress.layers.quant_depthwise_conv2d import QuantDepthwiseConv2D
from keras_compress.layers.quantized_kernel import input_quantizer_of, kernel_quantizer_of
from keras_compress.quantizers.gradient_quantizer import quantize_gradient


@keras.saving.register_keras_serializable(package="keras_compress")
class QuantSeparableConv2D(CompressedConvolution):
    """Separable convolution with quantised weights, and quantised inputs where asked for.

    A `QuantDepthwiseConv2D` and a 1x1 `QuantConv2D`, `layer.depthwise` and `layer.pointwise`, in
    the place of one `keras.layers.SeparableConv2D`. Training, storage and the forms of the
    literature are described at `QuantDense`. What lies between the two convolutions stays float.

    A .tflite stores the pointwise kernel, by far the larger one, like that of a 1x1 `QuantConv2D`
    (int2, int4, int8), and the depthwise kernel as float32.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the depthwise kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        depth_multiplier: Channels between the convolutions for each input channel.
        activation: Activation function.
        use_bias: Whether a bias is added. It stays float.
        depthwise_initializer: Initializer of the latent depthwise weights.
        pointwise_initializer: Initializer of the latent pointwise weights.
        depthwise_regularizer: Regularizer of the latent depthwise weights.
        pointwise_regularizer: Regularizer of the latent pointwise weights.
        depthwise_constraint: Constraint of the latent depthwise weights.
        pointwise_constraint: Constraint of the latent pointwise weights.
        kernel_quantizer: Quantizer of both kernels (each gets its own copy), its name or
            configuration, or `None`.
        depthwise_quantizer: Quantizer of the depthwise kernel; `None` for `kernel_quantizer`.
        pointwise_quantizer: Quantizer of the pointwise kernel; `None` for `kernel_quantizer`.
        input_quantizer: Quantizer of the inputs, without scales or with one for each sample
            (`axis=0`), or `None` (float inputs).
        grad_quantizer: Quantizer of the gradient that arrives at the layer's output, and of the one
            that arrives between its two convolutions, in training: see `QuantDense`.
        update_quantizer: Quantizer of the inputs that update each of the two kernels, in training:
            see `QuantDense`.
        **kwargs: The other arguments of `keras.layers.SeparableConv2D`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if a quantizer is unknown, the input quantizer has a scale for the whole batch,
            or a kernel's quantizer one along its first axis.

    Example:

    >>> layer = QuantSeparableConv2D(64, 3, kernel_quantizer="uniform", use_bias=False)
    >>> layer.build((None, 28, 28, 32))
    >>> layer.storage_bits()
    21760
    """

    source = keras.layers.SeparableConv2D
    source_arguments = (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "data_format",
        "dilation_rate",
        "depth_multiplier",
        "pointwise_initializer",
    )
    source_kernels = ("depthwise_kernel", "pointwise_kernel")
    _carried = QuantDepthwiseConv2D._carried

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        data_format=None,
        dilation_rate=(1, 1),
        depth_multiplier=1,
        activation=None,
        use_bias=True,
        *,
        depthwise_initializer="glorot_uniform",
        pointwise_initializer="glorot_uniform",
        depthwise_regularizer=None,
        pointwise_regularizer=None,
        depthwise_constraint=None,
        pointwise_constraint=None,
        kernel_quantizer=None,
        depthwise_quantizer=None,
        pointwise_quantizer=None,
        input_quantizer=None,
        grad_quantizer=None,
        update_quantizer=None,
        **kwargs,
    ):
        super().__init__(
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            **kwargs,
        )
        self.filters = validation.positive_int("filters", filters, self)
        self.depth_multiplier = validation.positive_int("depth_multiplier", depth_multiplier, self)
        default = kernel_quantizer_of("kernel_quantizer", kernel_quantizer, self)
        self.grad_quantizer = quantizers.get(grad_quantizer)
        # Keras tracks what it finds as an attribute of a layer.
        self._quantizer_state = [] if self.grad_quantizer is None else self.grad_quantizer.state
        update_quantizer = quantizers.get(update_quantizer)
        shared = {
            "data_format": self.data_format,
            "use_bias": False,
            "dtype": self.dtype_policy,
            "trainable": self.trainable,
        }
        self.depthwise = QuantDepthwiseConv2D(
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            depth_multiplier=self.depth_multiplier,
            dilation_rate=self.dilation_rate,
            depthwise_initializer=depthwise_initializer,
            depthwise_regularizer=depthwise_regularizer,
            depthwise_constraint=depthwise_constraint,
            kernel_quantizer=kernel_quantizer_of("depthwise_quantizer", depthwise_quantizer, self)
            or _copy(default),
            input_quantizer=input_quantizer_of(input_quantizer, self),
            grad_quantizer=_copy(self.grad_quantizer),
            update_quantizer=update_quantizer,
            name="depthwise",
            **shared,
        )
        self.pointwise = QuantConv2D(
            self.filters,
            1,
            kernel_initializer=pointwise_initializer,
            kernel_regularizer=pointwise_regularizer,
            kernel_constraint=pointwise_constraint,
            kernel_quantizer=kernel_quantizer_of("pointwise_quantizer", pointwise_quantizer, self)
            or _copy(default),
            update_quantizer=_copy(update_quantizer),
            name="pointwise",
            **shared,
        )

    @property
    def kernel_weights(self):
        return [*self.depthwise.kernel_weights, *self.pointwise.kernel_weights]

    @property
    def depthwise_kernel(self):
        """The latent depthwise weights, `(height, width, channels, depth_multiplier)`."""
        return self.depthwise.kernel

    @property
    def pointwise_kernel(self):
        """The latent pointwise weights, `(1, 1, channels * depth_multiplier, filters)`."""
        return self.pointwise.kernel

    def build_kernel(self, input_channels):
        shape = self._build_shape()
        self.depthwise.build(shape)
        self.pointwise.build(self.depthwise.compute_output_shape(shape))

    def call(self, inputs, training=None):
        outputs = self.add_bias_and_activate(self.apply_kernel(inputs, training))
        if training and self.grad_quantizer is not None:
            return quantize_gradient(outputs, self.grad_quantizer)
        return outputs

    def apply_kernel(self, inputs, training=None):
        return self.pointwise(self.depthwise(inputs, training=training), training=training)

    def reconstruct_kernels(self):
        return [self.depthwise.reconstruct_kernel(), self.pointwise.reconstruct_kernel()]

    @classmethod
    def fit_kernel(
        cls,
        depthwise_kernel,
        pointwise_kernel,
        *,
        kernel_quantizer=None,
        depthwise_quantizer=None,
        pointwise_quantizer=None,
        **options,
    ):
        """Takes the trained kernels as latent weights; the quantizers find their scales in them.

        Args:
            depthwise_kernel: Trained depthwise kernel.
            pointwise_kernel: Trained pointwise kernel.
            kernel_quantizer: As for the layer.
            depthwise_quantizer: As for the layer.
            pointwise_quantizer: As for the layer.
            **options: The layer's other arguments of its own.
        """
        default = quantizers.get(kernel_quantizer)
        fitted = {
            "depthwise_quantizer": quantizers.get(depthwise_quantizer) or _copy(default),
            "pointwise_quantizer": quantizers.get(pointwise_quantizer) or _copy(default),
        }
        values = [
            kernel if quantizer is None else quantizer.latent(kernel)
            for quantizer, kernel in zip(
                fitted.values(), (depthwise_kernel, pointwise_kernel), strict=True
            )
        ]
        return {**fitted, **options}, values

    def kernel_bits(self):
        return self.depthwise.kernel_bits() + self.pointwise.kernel_bits()

    def kernel_macs(self, input_size, output_size):
        """SeparableConv2D's count."""
        return self.depthwise.kernel_macs(input_size, output_size) + self.pointwise.kernel_macs(
            output_size, output_size
        )

    def output_channels_of(self, input_channels):
        return self.filters

    def export_form(self):
        """The layer for inference alone, as a 1x1 convolution behind a depthwise one."""
        return _SeparableForm.of(self)

    def get_config(self):
        config = super().get_config()
        for what in ("initializer", "regularizer", "constraint"):
            del config[f"kernel_{what}"]
        depthwise, pointwise = self.depthwise.get_config(), self.pointwise.get_config()
        return {
            **config,
            "filters": self.filters,
            "depth_multiplier": self.depth_multiplier,
            **{
                f"depthwise_{what}": depthwise[f"depthwise_{what}"]
                for what in ("initializer", "regularizer", "constraint")
            },
            **{
                f"pointwise_{what}": pointwise[f"kernel_{what}"]
                for what in ("initializer", "regularizer", "constraint")
            },
            "depthwise_quantizer": depthwise["kernel_quantizer"],
            "pointwise_quantizer": pointwise["kernel_quantizer"],
            "input_quantizer": depthwise["input_quantizer"],
            "grad_quantizer": depthwise["grad_quantizer"],
            "update_quantizer": depthwise["update_quantizer"],
        }


class _SeparableForm(CompressedConv2D):
    """A 1x1 convolution whose kernel the exporter can store, behind a depthwise convolution."""

    @classmethod
    def of(cls, layer):
        """The form of a built `QuantSeparableConv2D`."""
        config = layer.get_config()
        carried = ("name", "dtype", "activation", "use_bias", "data_format", "filters")
        form = cls(kernel_size=1, **{name: config[name] for name in carried})
        form.depthwise = layer.depthwise.export_form()
        pointwise = layer.pointwise.export_form()
        form.stored_kernel = pointwise.stored_kernel
        form.build(layer._build_shape())
        form.kernel.assign(pointwise.kernel)
        if form.bias is not None:
            form.bias.assign(ops.convert_to_numpy(layer.bias))
        return form

    def build_kernel(self, input_channels):
        shape = self.kernel_shape(self.depthwise.output_channels_of(input_channels))
        self.kernel = self.add_kernel_weight("kernel", shape, "zeros")

    def apply_kernel(self, inputs):
        return self.multiply(self.depthwise(inputs), ops.convert_to_tensor(self.kernel))

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self.depthwise.compute_output_shape(input_shape))


def _copy(quantizer):
    # Each its own: a random quantizer has a state, which belongs to one layer.
    return None if quantizer is None else quantizer.copy()
