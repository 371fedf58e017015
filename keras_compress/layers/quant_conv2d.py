"""QuantConv2D: a convolution with quantised weights and inputs."""

import math

import keras

from keras_compress import validation
from keras_compress.layers.compressed_conv2d import CompressedConv2D
from keras_compress.layers.quantized_kernel import QuantizedKernel


@keras.saving.register_keras_serializable(package="keras_compress")
class QuantConv2D(QuantizedKernel, CompressedConv2D):
    """Convolution with quantised weights, and quantised inputs where asked for.

    The convolutional twin of `QuantDense`, where training, storage and the forms of the literature
    are described. `BinaryConv2D` is this layer with signs. With `padding="same"` the border is
    zeros, added after the input quantizer.

    In a .tflite 1x1 kernels are stored like dense ones (int2, int4, int8). Larger kernels run as
    int8, or with `to_tflite(optimize_for="size")` at their own bits; grouped convolutions and
    channels first stay float.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Number of groups; divides the channels and `filters`.
        activation: Activation function.
        use_bias: Whether a bias is added. It stays float.
        kernel_quantizer: Quantizer of the weights, its name or configuration, or `None`.
        input_quantizer: Quantizer of the inputs, without scales or with one for each sample
            (`axis=0`), or `None` (float inputs).
        grad_quantizer: Quantizer of the gradient, in training: see `QuantDense`.
        update_quantizer: Quantizer of the inputs that update the kernel, in training: see
            `QuantDense`.
        **kwargs: The other arguments of `keras.layers.Conv2D`; initializer, regularizer and
            constraint of the kernel act on the latent weights.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if a quantizer is unknown, the input quantizer has a scale for the whole batch,
            the kernel quantizer one along its first axis, or `groups` does not divide the channels
            or `filters`.

    Reference:
        Li, Zhang, Liu, "Ternary Weight Networks", 2016.
        Zhou, Wu, Ni, Zhou, Wen, Zou, "DoReFa-Net: Training Low Bitwidth Convolutional Neural
        Networks with Low Bitwidth Gradients", 2016.

    Example:

    >>> layer = QuantConv2D(64, 3, kernel_quantizer="ternary", use_bias=False)
    >>> layer.build((None, 28, 28, 32))
    >>> layer.storage_bits()
    36896
    """

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
        *,
        kernel_quantizer=None,
        input_quantizer=None,
        grad_quantizer=None,
        update_quantizer=None,
        **kwargs,
    ):
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_quantizer=kernel_quantizer,
            input_quantizer=input_quantizer,
            grad_quantizer=grad_quantizer,
            update_quantizer=update_quantizer,
            **kwargs,
        )
        self._check_groups("filters", self.filters)

    def _check_groups(self, what, channels):
        if channels % self.groups:
            raise ValueError(
                f"{validation.prefix(self)}`groups` must divide the {what}, {channels}; got "
                f"groups={self.groups}. Groups of up to gcd = {math.gcd(channels, self.groups)} do."
            )

    def kernel_shape(self, input_channels):
        self._check_groups("input channels", input_channels)
        return (*self.kernel_size, input_channels // self.groups, self.filters)
