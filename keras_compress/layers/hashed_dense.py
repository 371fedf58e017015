"""HashedDense: a dense layer whose weights are drawn from a short vector by a hash."""

import keras

from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.hashed_weights import HashedWeights
from keras_compress.layers.stored_layers import StoredDense


@keras.saving.register_keras_serializable(package="keras_compress")
class HashedDense(HashedWeights, CompressedDense):
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

    With `num_hashes` of U each entry fetches U values by independent hashes, and a network that all
    entries share recovers it from them (functional hashing): more distinct values than K, for a few
    weights that do not grow with the layer. It pays off in the `.keras` file and `storage_bits`
    alone: the .tflite stores the kernel that comes out, dense.

    `from_layer` gives each bucket the mean of `xi * kernel` over it, the least-squares optimum. A
    trained kernel has no reason to agree within a bucket: expect to fine-tune. With several hashes
    the values are the least-squares optimum of their sums, and the network starts from random
    hidden layers and the best last one.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added. It is not hashed.
        compression: Free weights over kernel entries, in (0, 1].
        seed: Seed of the hash, an integer in [0, 2**32). A trained layer is of no use with another.
        num_hashes: Values that each entry of the kernel fetches.
        reconstruction: Sizes of the hidden layers (tanh) of the network that recovers an entry:
            `()` is a linear one. `None`: no network, but the sum over the hashes divided by the
            root of their number.
        kernel_initializer: Spread of the kernel: `w` is normal with its standard deviation.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on `w`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `compression` is not in (0, 1], `seed` not an integer in [0, 2**32), or
            `num_hashes` or a size in `reconstruction` not a positive integer.

    Reference:
        Chen, Wilson, Tyree, Weinberger, Chen, "Compressing Neural Networks with the Hashing
        Trick", 2015.
        Shi, Feng, Zhu, "Functional Hashing for Compressing Neural Networks", 2016.

    Example:

    >>> layer = HashedDense(256, compression=1 / 64)
    >>> layer.build((None, 512))
    >>> layer.count_params()
    2304
    >>> layer.expand().kernel.shape == (512, 256)
    True
    """

    stored_form = StoredDense

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        compression=1 / 8,
        seed=0,
        num_hashes=1,
        reconstruction=None,
        **kwargs,
    ):
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            compression=compression,
            seed=seed,
            num_hashes=num_hashes,
            reconstruction=reconstruction,
            **kwargs,
        )
