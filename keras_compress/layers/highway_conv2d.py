"""HighwayConv2D: a convolution with a gate that lets its input pass."""

import keras

from keras_compress.layers.compressed_convolution import pair
from keras_compress.layers.highway import Highway


@keras.saving.register_keras_serializable(package="keras_compress")
class HighwayConv2D(Highway):
    """As `HighwayDense`, with convolutions of the input's size for `H` and `T`.

    Args:
        filters: Number of output channels, that of the input; by default just that.
        kernel_size: Integer or pair, of both convolutions.
        activation: Of `H`.
        transform_bias: What the bias of the gate starts from, see `HighwayDense`.
        kernel_initializer: See `Block`.
        kernel_regularizer: See `Block`.
        data_format: See `Block`.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, filters)`, or channels first.

    Output shape:
        As the input.

    Raises:
        ValueError: if `filters` is not the number of input channels.

    Reference:
        Srivastava, Greff, Schmidhuber, "Highway Networks", 2015.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> kc.layers.HighwayConv2D(kernel_size=5).compute_output_shape((None, 8, 8, 4))
    (None, 8, 8, 4)
    """

    _width = "filters"

    def __init__(
        self,
        filters=None,
        kernel_size=3,
        activation="relu",
        transform_bias=-2.0,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(
            filters,
            activation,
            transform_bias,
            kernel_initializer,
            kernel_regularizer,
            data_format,
            **kwargs,
        )
        self.kernel_size = pair("kernel_size", kernel_size, self)

    def gated(self, part, width, activation, bias):
        options = {"activation": activation, "use_bias": True, "bias_initializer": bias}
        return self.conv(part, width, self.kernel_size, **options)

    def get_config(self):
        return {**super().get_config(), "kernel_size": self.kernel_size}
