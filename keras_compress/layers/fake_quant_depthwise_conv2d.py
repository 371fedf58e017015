"""FakeQuantDepthwiseConv2D: a depthwise convolution that trains with a rounded kernel."""

import keras
from keras import ops

from keras_compress.layers.compressed_depthwise_conv2d import CompressedDepthwiseConv2D
from keras_compress.layers.fake_quant_kernel import FakeQuantKernel


@keras.saving.register_keras_serializable(package="keras_compress")
class FakeQuantDepthwiseConv2D(FakeQuantKernel, CompressedDepthwiseConv2D):
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

    _prefix = "depthwise"

    def _by_output(self, kernel):
        return ops.reshape(kernel, (*self.kernel_size, 1, self._output_channels))
