"""ToeplitzLikeDense: a dense layer whose kernel is close to a Toeplitz matrix."""

import keras

from keras_compress.layers.ldr_dense import LDRDense


@keras.saving.register_keras_serializable(package="keras_compress")
class ToeplitzLikeDense(LDRDense):
    """Dense layer whose kernel is Toeplitz-like: a sum of products of two circulants.

    The transposed kernel is a part of a square matrix `M` of size `n = max(input_dim, units)` with
    `Z_1 M - M Z_{-1} = G H^T`, where `Z_f` shifts down by one with `f` in the corner. Then
    `M = 1/2 sum_i Z_1(g_i) Z_{-1}(J h_i)`, with `Z_f(v)` the f-circulant of first column `v` and
    `J` the reversal. Rank 1 holds circulants, rank 2 Toeplitz matrices and their inverses, rank 4
    products of two of them, rank `n` everything. It is `LDRDense` with two shifts.

    What it buys: a .tflite of `2 n rank` weights, which runs slower than the dense layer. For speed
    see `CirculantDense` with blocks.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        rank: Displacement rank: columns of each generator, at most `n`.
        kernel_initializer: Spread of the kernel that the generators stand for; they are normal.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on each generator, of shape `(n, rank)`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `rank` is larger than `n`.

    Reference:
        Sindhwani, Sainath, Kumar, "Structured Transforms for Small-Footprint Deep Learning", 2015.

    Example:

    >>> layer = ToeplitzLikeDense(256, rank=2, use_bias=False)
    >>> layer.build((None, 1024))
    >>> layer.count_params()
    4096
    """

    def __init__(self, units, activation=None, use_bias=True, *, rank=2, **kwargs):
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            rank=rank,
            operators=("shift", "shift"),
            **kwargs,
        )

    @classmethod
    def fit_kernel(cls, kernel, *, rank=2):
        """Fits the generators: see `decomposition.displacement.fit_displacement`.

        Args:
            kernel: Array `(input_dim, units)`.
            rank: As for the layer.
        """
        arguments, generators = super().fit_kernel(kernel, rank=rank)
        del arguments["operators"]
        return arguments, generators

    def get_config(self):
        config = super().get_config()
        del config["operators"]
        return config
