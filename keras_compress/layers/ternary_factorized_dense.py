"""TernaryFactorizedDense: a dense layer whose kernel is two ternary matrices and a scale."""

import keras
from keras import ops

from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.stored_layers import StoredChain, StoredDense
from keras_compress.layers.ternary_factorized_kernel import TernaryFactorizedKernel


@keras.saving.register_keras_serializable(package="keras_compress")
class TernaryFactorizedDense(TernaryFactorizedKernel, CompressedDense):
    """Dense layer whose kernel is `x d y`: x and y of -1, 0 and 1, d a scale for each term.

    The forward pass adds, subtracts, and multiplies `rank` times for each row of inputs. Trained
    are latent real factors, which are rounded in every forward pass and get their gradients
    straight through it, and the scales.

    `from_layer` finds the ternary factors greedily (`kc.decomposition.TernaryFactors`), moves the
    latent ones as near to the kernel as they can without rounding to others ("full-precision
    recovery"), and gives both of them levels at which their gradients are of one size ("weight
    balancing"); so the layer starts as its ternary factors, ready to be fine-tuned.

    A .tflite stores both factors as int2, exactly. For a square kernel with as many terms as inputs
    that is 8 times smaller than float32 and twice the size, and the time, of one ternary matrix
    (`QuantDense` with `"ternary"`), whose error before training is 1.3 to 1.8 times as large. Fewer
    terms are smaller and faster in proportion. int8 is faster than as many terms, and nearer to the
    kernel.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added. It stays float.
        rank: Number of terms. About `min(input_dim, units)` is the rule; more are allowed.
            `from_layer` also takes, instead, `factors=`, what
            `kc.decomposition.decompose(kernel, "ternary", rank)` gave.
        kernel_initializer: Spread of the kernel that the factors stand for.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on each latent factor.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `rank` is not positive or larger than the number of entries of the kernel.

    Reference:
        Wang, Cheng, "Fixed-point Factorized Networks", 2016.

    Example:

    >>> layer = TernaryFactorizedDense(512, rank=512, use_bias=False)
    >>> layer.build((None, 1024))
    >>> layer.storage_bits() // 8, layer.multiplications((None, 1024))
    (198656, 512)
    """

    def __init__(self, units, activation=None, use_bias=True, *, rank, **kwargs):
        super().__init__(units, activation=activation, use_bias=use_bias, rank=rank, **kwargs)

    def fans(self, kernel_shape):
        return kernel_shape

    def mix(self, outputs, scale, last):
        return self.multiply(ops.multiply(outputs, scale), last)

    def kernel_macs(self):
        """Sums of both products, and the scales: see `multiplications`."""
        return self.rank * (self.input_channels + 1 + self.units)

    def multiplications(self, input_shape=None):
        """How many of `macs` need a multiplication: those by scales.

        Args:
            input_shape: As for `macs`.
        """
        return self.macs(input_shape) // self.kernel_macs() * self.rank

    def export_form(self):
        """Two dense layers with ternary kernels."""
        first, last = self.stored_kernels()
        parts = [
            StoredDense.of(self, first, units=self.rank, **self.without_the_rest("first")),
            StoredDense.of(self, last),
        ]
        return StoredChain(parts, name=self.name, dtype=self.dtype_policy)
