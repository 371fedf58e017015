"""MECConv2D: a convolution whose products need little memory beside the input."""

import keras
from keras import ops

from keras_compress.layers.compressed_conv2d import CompressedConv2D, refuse_groups
from keras_compress.ops.mec import mec_conv2d, mec_lowered_size


@keras.saving.register_keras_serializable(package="keras_compress")
class MECConv2D(CompressedConv2D):
    """`keras.layers.Conv2D`, computed by products with an input lowered along the width only.

    The same weights and the same outputs: see `kc.ops.mec_conv2d`. What it buys is memory where a
    convolution is computed as im2col and a product: about `kernel height / stride` times less. The
    kernels of TensorFlow, XLA and LiteRT copy windows bit by bit as they go, and need neither; a
    .tflite holds the plain convolution.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Must be 1.
        activation: Activation function.
        use_bias: Whether a bias is added.
        **kwargs: The other arguments of `keras.layers.Conv2D`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        Cho, Brand, "MEC: Memory-efficient Convolution for Deep Neural Network", 2017.

    Example:

    >>> layer = MECConv2D(4, 3)
    >>> layer.build((None, 7, 7, 1))
    >>> layer.lowered_size((1, 7, 7, 1)), layer.macs((1, 7, 7, 1))
    (105, 900)
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
            **kwargs,
        )
        refuse_groups(self.groups, self)

    def build_kernel(self, input_channels):
        self.kernel = self.add_kernel_weight(
            "kernel", self.kernel_shape(input_channels), self.kernel_initializer
        )

    def apply_kernel(self, inputs):
        first = self.data_format == "channels_first"
        x = ops.transpose(inputs, (0, 2, 3, 1)) if first else inputs
        kernel = ops.cast(self.kernel, x.dtype)
        outputs = mec_conv2d(x, kernel, self.strides, self.padding, self.dilation_rate)
        return ops.transpose(outputs, (0, 3, 1, 2)) if first else outputs

    def lowered_size(self, input_shape):
        """Number of values of the lowered input; the batch size counts.

        Args:
            input_shape: `(batch, height, width, channels)`, or channels first.
        """
        if self.data_format == "channels_first":
            input_shape = (input_shape[0], *input_shape[2:], input_shape[1])
        return mec_lowered_size(
            input_shape, self.kernel_size, self.strides, self.padding, self.dilation_rate
        )

    def reconstruct_kernel(self):
        return ops.convert_to_numpy(ops.cast(self.kernel, "float32"))

    @classmethod
    def fit_kernel(cls, kernel):
        return {}, [kernel]

    def export_form(self):
        """The plain convolution, which LiteRT computes without a lowered input, where it can."""
        # Of a dilated one with channels first the converter makes what LiteRT does not load.
        if self.data_format == "channels_first" and max(self.dilation_rate) > 1:
            return self
        return self.expand()
