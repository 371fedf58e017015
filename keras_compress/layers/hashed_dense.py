"""HashedDense: a dense layer whose weights are drawn from a short vector by a hash."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.stored_kernel import HashedKernel
from keras_compress.layers.stored_layers import StoredDense
from keras_compress.sharing.hashing import (
    expand_values_tensor,
    fit_values,
)


@keras.saving.register_keras_serializable(package="keras_compress")
class HashedDense(CompressedDense):
    """Dense layer whose kernel shares few free weights, as a hash says (HashedNets).

    The kernel is `V[i, j] = w[h(i, j)] * xi(i, j)`: a vector `w` of
    `K = ceil(compression * input_dim * units)` weights, a hash `h` into its K buckets and a second
    one, `xi`, into {-1, 1}. The hash is an integer mix of `(i, j)`, `seed` and the kernel's shape
    (`sharing.hashing`), made again in each step and never stored.

    What it buys: a `.keras` file and `storage_bits` of K weights, and a .tflite of K bytes, in
    which the kernel is hashed once, when it is loaded, into int8: a large layer then runs faster
    than the float32 dense one (`benchmarks/README.md`). In Keras, training and prediction cost more
    than the dense layer's, by the hash, the gather and the bucket sum; none of them grows with the
    batch. `expand()` gives the stock layer.

    `from_layer` gives each bucket the mean of `xi * kernel` over it, the least-squares optimum. A
    trained kernel has no reason to agree within a bucket: expect to fine-tune.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added. It is not hashed.
        compression: Free weights over kernel entries, in (0, 1].
        seed: Seed of the hash, an integer in [0, 2**32). A trained layer is of no use with another.
        kernel_initializer: Spread of the kernel: `w` is normal with its standard deviation.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on `w`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `compression` is not in (0, 1] or `seed` not an integer in [0, 2**32).

    Reference:
        Chen, Wilson, Tyree, Weinberger, Chen, "Compressing Neural Networks with the Hashing
        Trick", 2015.

    Example:

    >>> layer = HashedDense(256, compression=1 / 64)
    >>> layer.build((None, 512))
    >>> layer.count_params()
    2304
    >>> layer.expand().kernel.shape == (512, 256)
    True
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        compression=1 / 8,
        seed=0,
        **kwargs,
    ):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        self.compression = _check_compression(compression, self)
        self.seed = validation.seed(seed, self)

    def build_kernel(self, input_channels):
        sigma = initializer_stddev(self.kernel_initializer, input_channels, self.units)
        self.values = self.add_kernel_weight(
            "values",
            (_bucket_count(self.compression, input_channels * self.units),),
            self.normal_initializer(sigma),
        )

    def call(self, inputs, training=None):
        return self.add_bias_and_activate(self.apply_kernel(inputs, training))

    def apply_kernel(self, inputs, training=None):
        # Not fused in inference, so that saved graphs run without XLA.
        kernel = expand_values_tensor(
            ops.convert_to_tensor(self.values),
            self.kernel_shape(self.input_channels),
            self.seed,
            bool(training),
        )
        return ops.matmul(inputs, kernel)

    def reconstruct_kernel(self):
        return self._stored_kernel().dense()

    def _stored_kernel(self):
        return HashedKernel(
            ops.convert_to_numpy(self.values), self.seed, self.kernel_shape(self.input_channels)
        )

    def export_form(self):
        """The values alone, as int8, hashed into the kernel when the .tflite is loaded."""
        return StoredDense.of(self, self._stored_kernel())

    @classmethod
    def fit_kernel(cls, kernel, *, compression=1 / 8, seed=0):
        """Fits the values by least squares: bucket means.

        Args:
            kernel: Array `(input_dim, units)`.
            compression: As for the layer.
            seed: As for the layer.
        """
        compression = _check_compression(compression, cls.__name__)
        seed = validation.seed(seed, cls.__name__)
        values = fit_values(kernel, _bucket_count(compression, kernel.size), seed)
        return {"compression": compression, "seed": seed}, [values]

    def get_config(self):
        return {**super().get_config(), "compression": self.compression, "seed": self.seed}


def _check_compression(compression, owner):
    return validation.number("compression", compression, 0, 1, low_open=True, owner=owner)


def _bucket_count(compression, entries):
    # Rounded first: 0.07 * 100 is a little more than 7.
    return max(1, math.ceil(round(compression * entries, 6)))
