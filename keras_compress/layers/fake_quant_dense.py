"""FakeQuantDense: a dense layer that trains with its kernel rounded to a grid."""

import keras

from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.fake_quant_kernel import FakeQuantKernel
from keras_compress.layers.stored_layers import StoredDense


@keras.saving.register_keras_serializable(package="keras_compress")
class FakeQuantDense(FakeQuantKernel, CompressedDense):
    """Dense layer that trains with its kernel rounded to a grid: see `FakeQuantKernel`.

    `kc.quantizers.quantize_aware` puts it in the place of `Dense`.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        weight_bits: Bits of a weight.
        granularity: `"tensor"` (the default: the converter takes no other for integer inputs) or
            `"channel"`.
        batch_norm: See `FakeQuantKernel`.
        weights_only: See `FakeQuantKernel`.
        **kwargs: The other arguments of `keras.layers.Dense`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `weight_bits` or `granularity` is none of those allowed.

    Reference:
        Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
        whitepaper", 2018.

    Example:

    >>> layer = FakeQuantDense(4, weight_bits=4, use_bias=False)
    >>> layer.build((None, 8))
    >>> layer.storage_bits()
    160
    """

    def __init__(self, units, activation=None, use_bias=True, *, granularity="tensor", **kwargs):
        super().__init__(
            units, activation=activation, use_bias=use_bias, granularity=granularity, **kwargs
        )

    def _stored_form(self):
        return StoredDense.of(self.expand(), self.grid_kernel())
