"""QuantDepthwiseConv2D: a depthwise convolution with quantised weights and inputs."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.compressed_convolution import CompressedConvolution
from keras_compress.layers.quantized_kernel import QuantizedKernel


@keras.saving.register_keras_serializable(package="keras_compress")
class QuantDepthwiseConv2D(QuantizedKernel, CompressedConvolution):
    """Depthwise convolution with quantised weights, and quantised inputs where asked for.

    The depthwise twin of `QuantDense`, where training, storage and the forms of the literature are
    described. A quantizer with `axis=-1` gives each output channel its own scale.

    A .tflite stores the quantised kernel as float32: it is the smallest part of a separable
    convolution, and LiteRT's depthwise kernels for float inputs take no integers.

    Args:
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        depth_multiplier: Output channels of each input channel.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        activation: Activation function.
        use_bias: Whether a bias is added. It stays float.
        depthwise_initializer: Initializer of the latent weights.
        depthwise_regularizer: Regularizer of the latent weights.
        depthwise_constraint: Constraint of the latent weights.
        kernel_quantizer: Quantizer of the weights, its name or configuration, or `None`.
        input_quantizer: Quantizer of the inputs, without scales or with one for each sample
            (`axis=0`), or `None` (float inputs).
        **kwargs: The other arguments of `keras.layers.DepthwiseConv2D`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, channels * depth_multiplier)`, or channels first.

    Raises:
        ValueError: if a quantizer is unknown, the input quantizer has a scale for the whole batch,
            or the kernel quantizer one along its first axis.

    Example:

    >>> layer = QuantDepthwiseConv2D(3, kernel_quantizer="uniform", use_bias=False)
    >>> layer.build((None, 28, 28, 32))
    >>> layer.storage_bits()
    3328
    """

    source = keras.layers.DepthwiseConv2D
    source_arguments = (
        "kernel_size",
        "strides",
        "padding",
        "depth_multiplier",
        "data_format",
        "dilation_rate",
    )
    _carried = tuple(
        name.replace("kernel_", "depthwise_") for name in CompressedConvolution._carried
    )

    def __init__(
        self,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        depth_multiplier=1,
        data_format=None,
        dilation_rate=(1, 1),
        activation=None,
        use_bias=True,
        *,
        depthwise_initializer="glorot_uniform",
        depthwise_regularizer=None,
        depthwise_constraint=None,
        kernel_quantizer=None,
        input_quantizer=None,
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
            kernel_initializer=depthwise_initializer,
            kernel_regularizer=depthwise_regularizer,
            kernel_constraint=depthwise_constraint,
            kernel_quantizer=kernel_quantizer,
            input_quantizer=input_quantizer,
            **kwargs,
        )
        self.depth_multiplier = validation.positive_int("depth_multiplier", depth_multiplier, self)

    def kernel_shape(self, input_channels):
        return (*self.kernel_size, input_channels, self.depth_multiplier)

    def _by_output(self, kernel):
        return ops.reshape(kernel, (*self.kernel_size, self._output_channels))

    def _stored_kernel(self):
        return None

    def multiply(self, inputs, kernel):
        """The stock layer's convolution of inputs and a dense kernel."""
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )

    def output_channels_of(self, input_channels):
        return input_channels * self.depth_multiplier

    def kernel_macs(self, input_size, output_size):
        """DepthwiseConv2D's count, of products of what the quantizers give."""
        return math.prod(output_size) * math.prod(self.kernel.shape)

    def get_config(self):
        config = super().get_config()
        for what in ("initializer", "regularizer", "constraint"):
            config[f"depthwise_{what}"] = config.pop(f"kernel_{what}")
        return {**config, "depth_multiplier": self.depth_multiplier}
