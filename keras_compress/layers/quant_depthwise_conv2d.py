"""QuantDepthwiseConv2D: a depthwise convolution with quantised weights and inputs."""

import keras
from keras import ops

from keras_compress.layers.compressed_depthwise_conv2d import CompressedDepthwiseConv2D
from keras_compress.layers.quantized_kernel import QuantizedKernel


@keras.saving.register_keras_serializable(package="keras_compress")
class QuantDepthwiseConv2D(QuantizedKernel, CompressedDepthwiseConv2D):
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
        grad_quantizer: Quantizer of the gradient, in training: see `QuantDense`.
        update_quantizer: Quantizer of the inputs that update the kernel, in training: see
            `QuantDense`.
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

    def _by_output(self, kernel):
        return ops.reshape(kernel, (*self.kernel_size, self._output_channels))

    def _stored_kernel(self):
        return None
