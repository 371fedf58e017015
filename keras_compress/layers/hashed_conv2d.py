"""HashedConv2D: a convolution whose weights are drawn from a short vector by a hash."""

import keras

from keras_compress.layers.compressed_conv2d import CompressedConv2D, refuse_groups
from keras_compress.layers.hashed_weights import HashedWeights
from keras_compress.layers.stored_layers import StoredConv2D


@keras.saving.register_keras_serializable(package="keras_compress")
class HashedConv2D(HashedWeights, CompressedConv2D):
    """Convolution whose kernel shares few free weights, as a hash says (HashedNets).

    The convolutional twin of `HashedDense`, where training, `from_layer` and functional hashing are
    described: `V[i, j, s, t] = w[h(i, j, s, t)] * xi(i, j, s, t)`.

    In a .tflite the kernel is int8, stored as it is: a quarter of the dense layer. With
    `to_tflite(optimize_for="size")`, and a 1x1 kernel always, the values alone are stored, and
    hashed when the file is loaded: the convolution then runs on patches, several times slower than
    the float one. Channels first stays float.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Must be 1.
        activation: Activation function.
        use_bias: Whether a bias is added. It is not hashed.
        compression: Free weights over kernel entries, in (0, 1].
        seed: Seed of the hash, an integer in [0, 2**32). A trained layer is of no use with another.
        num_hashes: Values that each entry of the kernel fetches.
        reconstruction: Sizes of the hidden layers of the network that recovers an entry, or `None`:
            see `HashedDense`.
        kernel_initializer: Spread of the kernel: `w` is normal with its standard deviation.
        **kwargs: The other arguments of `keras.layers.Conv2D`; regularizer and constraint of the
            kernel act on `w`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if `groups` is not 1, or as `HashedDense`.

    Reference:
        Chen, Wilson, Tyree, Weinberger, Chen, "Compressing Neural Networks with the Hashing
        Trick", 2015.

    Example:

    >>> layer = HashedConv2D(64, 3, compression=1 / 16, use_bias=False)
    >>> layer.build((None, 14, 14, 32))
    >>> layer.count_params(), layer.expand().count_params()
    (1152, 18432)
    """

    stored_form = StoredConv2D

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
        compression=1 / 8,
        seed=0,
        num_hashes=1,
        reconstruction=None,
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
            compression=compression,
            seed=seed,
            num_hashes=num_hashes,
            reconstruction=reconstruction,
            **kwargs,
        )
        refuse_groups(self.groups, self)

    @classmethod
    def from_layer(cls, layer, **options):
        refuse_groups(getattr(layer, "groups", 1), cls.__name__)
        return super().from_layer(layer, **options)
