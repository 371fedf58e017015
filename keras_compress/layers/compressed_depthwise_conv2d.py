"""Base of the layers that replace `keras.layers.DepthwiseConv2D`."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.compressed_convolution import CompressedConvolution


class CompressedDepthwiseConv2D(CompressedConvolution):
    """Base of layers that replace `keras.layers.DepthwiseConv2D`.

    Args:
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        depth_multiplier: Output channels of each input channel.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        depthwise_initializer: Initializer of the kernel.
        depthwise_regularizer: Regularizer of the kernel.
        depthwise_constraint: Constraint of the kernel.
        **kwargs: See `CompressedLayer`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, channels * depth_multiplier)`, or channels first.
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
        """Shape of the stock layer's kernel."""
        return (*self.kernel_size, input_channels, self.depth_multiplier)

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
        """DepthwiseConv2D's count."""
        return math.prod(output_size) * math.prod(self.kernel.shape)

    def get_config(self):
        config = super().get_config()
        for what in ("initializer", "regularizer", "constraint"):
            config[f"depthwise_{what}"] = config.pop(f"kernel_{what}")
        return {**config, "depth_multiplier": self.depth_multiplier}
