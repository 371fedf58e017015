"""FakeQuantDepthwiseConv2D: a depthwise convolution that trains with a rounded kernel."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.compressed_convolution import CompressedConvolution
from keras_compress.layers.fake_quant_kernel import FakeQuantKernel


@keras.saving.register_keras_serializable(package="keras_compress")
class FakeQuantDepthwiseConv2D(FakeQuantKernel, CompressedConvolution):
    """Depthwise convolution that trains with its kernel rounded to a grid: see `FakeQuantKernel`.

    `kc.quantizers.quantize_aware` puts it in the place of `DepthwiseConv2D`. With
    `weights_only=True` a .tflite stores the rounded kernel as float32: LiteRT's depthwise kernels
    for float inputs take no integers.

    Args:
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        depth_multiplier: Output channels of each input channel.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        activation: Activation function.
        use_bias: Whether a bias is added.
        depthwise_initializer: Initializer of the kernel.
        depthwise_regularizer: Regularizer of the kernel.
        depthwise_constraint: Constraint of the kernel.
        **kwargs: The other arguments of `keras.layers.DepthwiseConv2D`, and those of
            `FakeQuantKernel`: `weight_bits`, `granularity`, `batch_norm`, `weights_only`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, channels * depth_multiplier)`, or channels first.

    Raises:
        ValueError: if `weight_bits` or `granularity` is none of those allowed.

    Reference:
        Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
        whitepaper", 2018.

    Example:

    >>> layer = FakeQuantDepthwiseConv2D(3, use_bias=False)
    >>> layer.build((None, 5, 5, 8))
    >>> layer.storage_bits()
    832
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
    _prefix = "depthwise"

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
            **kwargs,
        )
        self.depth_multiplier = validation.positive_int("depth_multiplier", depth_multiplier, self)

    def kernel_shape(self, input_channels):
        return (*self.kernel_size, input_channels, self.depth_multiplier)

    def _by_output(self, kernel):
        return ops.reshape(kernel, (*self.kernel_size, 1, self._output_channels))

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
        return math.prod(output_size) * math.prod(self.kernel.shape)

    def get_config(self):
        config = super().get_config()
        for what in ("initializer", "regularizer", "constraint"):
            config[f"depthwise_{what}"] = config.pop(f"kernel_{what}")
        return {**config, "depth_multiplier": self.depth_multiplier}
