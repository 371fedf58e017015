"""TernaryFactorizedConv2D: a convolution whose kernel is two ternary matrices and a scale."""

import math

import keras
from keras import ops

from keras_compress.layers.compressed_conv2d import CompressedConv2D, refuse_groups
from keras_compress.layers.stored_layers import StoredChain, StoredConv2D
from keras_compress.layers.ternary_factorized_kernel import TernaryFactorizedKernel


@keras.saving.register_keras_serializable(package="keras_compress")
class TernaryFactorizedConv2D(TernaryFactorizedKernel, CompressedConv2D):
    """Convolution whose kernel, as a matrix, is `x d y`: x and y of -1, 0 and 1.

    The convolutional twin of `TernaryFactorizedDense`, where training and storage are described.
    Runs as a ternary convolution of the kernel's size to `rank` channels, a scale for each, and a
    ternary 1x1 convolution: `rank` multiplications for each output position.

    In a .tflite the 1x1 kernel is int2 or int4; one of 3x3 or more runs as int8, or with
    `to_tflite(optimize_for="size")` is stored as small as it is. Channels first stay float.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair; of the first convolution.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Must be 1.
        activation: Activation function.
        use_bias: Whether a bias is added. It stays float.
        rank: Number of terms. About `filters` is the rule; more are allowed. `from_layer` also
            takes, instead, `factors=`, what `kc.decomposition.decompose(kernel, "ternary", rank)`
            gave.
        kernel_initializer: Spread of the kernel that the factors stand for.
        **kwargs: The other arguments of `keras.layers.Conv2D`; regularizer and constraint of the
            kernel act on each latent factor.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if `rank` is not positive or larger than the number of entries of the kernel, or
            `groups` is not 1.

    Reference:
        Wang, Cheng, "Fixed-point Factorized Networks", 2016.

    Example:

    >>> layer = TernaryFactorizedConv2D(64, 3, rank=64, use_bias=False)
    >>> layer.build((None, 28, 28, 32))
    >>> layer.storage_bits() // 8, layer.multiplications((None, 28, 28, 32))
    (5888, 43264)
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
        rank,
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
            rank=rank,
            **kwargs,
        )
        refuse_groups(self.groups, self)

    def fans(self, kernel_shape):
        area = math.prod(self.kernel_size)
        return area * kernel_shape[2], area * kernel_shape[3]

    def mix(self, outputs, scale, last):
        if self.data_format == "channels_first":
            scale = ops.reshape(scale, (1, -1, 1, 1))
        return ops.conv(ops.multiply(outputs, scale), last, data_format=self.data_format)

    def kernel_macs(self, input_size, output_size):
        """Sums of both convolutions, and the scales: see `multiplications`."""
        window = math.prod(self.kernel_size) * self.input_channels
        return math.prod(output_size) * self.rank * (window + 1 + self.filters)

    def multiplications(self, input_shape):
        """How many of `macs` need a multiplication: those by scales.

        Args:
            input_shape: As for `macs`.
        """
        self.check_built("multiplications")
        return math.prod(self._size(self.compute_output_shape(input_shape))) * self.rank

    @classmethod
    def from_layer(cls, layer, **options):
        refuse_groups(getattr(layer, "groups", 1), cls.__name__)
        return super().from_layer(layer, **options)

    def export_form(self):
        """Two convolutions with ternary kernels."""
        first, last = self.stored_kernels()
        point = {"kernel_size": 1, "strides": 1, "padding": "valid", "dilation_rate": 1}
        parts = [
            StoredConv2D.of(self, first, filters=self.rank, **self.without_the_rest("first")),
            StoredConv2D.of(self, last, **point),
        ]
        return StoredChain(parts, name=self.name, dtype=self.dtype_policy)
