"""FactorizedDense: a dense layer whose kernel is the product of two matrices."""

import math

import keras
from keras import ops

from keras_compress.decomposition.decompose import decompose
from keras_compress.decomposition.factors import check_factors
from keras_compress.decomposition.ranks import resolve_rank
from keras_compress.decomposition.svd import SVDFactors
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense


@keras.saving.register_keras_serializable(package="keras_compress")
class FactorizedDense(CompressedDense):
    """Dense layer whose kernel is `A B`: a linear bottleneck of `rank` units, no bias between.

    Stores `rank * (input_dim + units)` values instead of `input_dim * units`; multiply-accumulates
    fall by the same ratio, in the .tflite as two FULLY_CONNECTED. `from_layer` starts from the
    truncated SVD of the trained kernel, the best kernel of that rank.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added, after the second product.
        rank: Size of the bottleneck, at most `min(input_dim, units)`. `from_layer` also takes a
            float in (0, 1] (share of the squared singular values to keep), `"evbmf"` (singular
            values above the noise) or a `kc.decomposition.RankPolicy`; or, instead of a rank,
            `factors=`, what `kc.decomposition.decompose` gave.
        kernel_initializer: Spread of the kernel that the two factors stand for: each is normal
            with standard deviation `(sigma^2 / rank)^(1/4)`.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on each factor.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if the rank is larger than the kernel allows, or depends on a kernel that a
            layer built from scratch does not have.

    Reference:
        Sainath, Kingsbury, Sindhwani, Arisoy, Ramabhadran, "Low-rank Matrix Factorization for Deep
        Neural Network Training with High-dimensional Output Targets", 2013.

    Example:

    >>> layer = FactorizedDense(2220, rank=128, use_bias=False)
    >>> layer.build((None, 1024))
    >>> layer.count_params()
    415232
    """

    def __init__(self, units, activation=None, use_bias=True, *, rank, **kwargs):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        (self.rank,) = resolve_rank(rank, SVDFactors.limits((math.inf, self.units)), owner=self)

    def build_kernel(self, input_channels):
        shape = (input_channels, self.units)
        resolve_rank(self.rank, SVDFactors.limits(shape), owner=self)
        sigma = initializer_stddev(self.kernel_initializer, *shape)
        stddev = (sigma**2 / self.rank) ** 0.25
        self.factors = [
            self.add_kernel_weight(f"factor_{k}", size, self.normal_initializer(stddev, k))
            for k, size in enumerate(SVDFactors.shapes(shape, (self.rank,)))
        ]

    def apply_kernel(self, inputs):
        left, right = self.factors
        return ops.matmul(ops.matmul(inputs, left), right)

    def reconstruct_kernel(self):
        return SVDFactors(ops.convert_to_numpy(f) for f in self.factors).reconstruct()

    def kernel_macs(self):
        return self.rank * (self.input_channels + self.units)

    @classmethod
    def fit_kernel(cls, kernel, *, rank="evbmf", factors=None):
        """Truncated SVD.

        Args:
            kernel: Array `(input_dim, units)`.
            rank: As for `from_layer`.
            factors: `kc.decomposition.SVDFactors` of a kernel of that shape, to be taken as they
                are.
        """
        if factors is None:
            factors = decompose(kernel, "svd", rank, cls.__name__)
        check_factors(factors, kernel, ("svd",), cls.__name__)
        return {"rank": factors.rank[0]}, factors.arrays

    def get_config(self):
        return {**super().get_config(), "rank": self.rank}
