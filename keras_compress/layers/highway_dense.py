"""HighwayDense: a dense layer with a gate that lets its input pass."""

import keras

from keras_compress.layers.highway import Highway


@keras.saving.register_keras_serializable(package="keras_compress")
class HighwayDense(Highway):
    """`y = T * H + (1 - T) * x` with `H = act(x W + b)` and the gate `T = sigmoid(x W_T + b_T)`.

    The bias of the gate starts negative, so that the layer starts as the identity: chains of fifty
    train by plain gradient descent. A `Block`: see there for how it runs as one layer or as its
    stock layers.

    Args:
        units: Number of outputs, that of the inputs; by default just that.
        activation: Of `H`.
        transform_bias: What `b_T` starts from: -1 to -3, the lower the deeper the network.
        kernel_initializer: See `Block`.
        kernel_regularizer: See `Block`.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, ..., units)`.

    Output shape:
        As the input.

    Raises:
        ValueError: if `units` is not the number of inputs.

    Reference:
        Srivastava, Greff, Schmidhuber, "Highway Networks", 2015.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> layer = kc.layers.HighwayDense()
    >>> layer.build((None, 16))
    >>> layer.macs((None, 16))
    512
    """

    _ndim = None
    _width = "units"

    def __init__(
        self,
        units=None,
        activation="relu",
        transform_bias=-2.0,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(
            units,
            activation,
            transform_bias,
            kernel_initializer,
            kernel_regularizer,
            None,
            **kwargs,
        )

    def gated(self, part, width, activation, bias):
        options = {"activation": activation, "bias_initializer": bias}
        return self.kernel_part(keras.layers.Dense, part, width, **options)

    def get_config(self):
        config = super().get_config()
        del config["data_format"]
        return config
