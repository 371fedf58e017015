"""FakeQuantConv2D: a convolution that trains with its kernel rounded to a grid."""

import keras

from keras_compress.layers.compressed_conv2d import CompressedConv2D
from keras_compress.layers.fake_quant_kernel import FakeQuantKernel
from keras_compress.layers.stored_layers import StoredConv2D


@keras.saving.register_keras_serializable(package="keras_compress")
class FakeQuantConv2D(FakeQuantKernel, CompressedConv2D):
    """Convolution that trains with its kernel rounded to a grid: see `FakeQuantKernel`.

    `kc.quantizers.quantize_aware` puts it in the place of `Conv2D`.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        **kwargs: The other arguments of `keras.layers.Conv2D`, and those of `FakeQuantKernel`:
            `weight_bits`, `granularity`, `batch_norm`, `weights_only`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if `weight_bits` or `granularity` is none of those allowed.

    Reference:
        Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
        whitepaper", 2018.

    Example:

    >>> layer = FakeQuantConv2D(4, 1, use_bias=False)
    >>> layer.build((None, 5, 5, 8))
    >>> layer.storage_bits()
    384
    """

    def _stored_form(self):
        return StoredConv2D.of(self.expand(), self.grid_kernel())
