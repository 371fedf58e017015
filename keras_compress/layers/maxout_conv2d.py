"""MaxoutConv2D: each filter gives the largest of a few linear pieces."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.compressed_convolution import conv_output_length, pair
from keras_compress.layers.maxout import CARRIED, Maxout


@keras.saving.register_keras_serializable(package="keras_compress")
class MaxoutConv2D(Maxout, keras.layers.Layer):
    """2D convolution of maxout filters: the largest of `pieces` feature maps, position by position.

    See `MaxoutDense`. Channels are last.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair of integers.
        pieces: Linear pieces of a filter.
        strides: Integer or pair of integers.
        padding: `"valid"` or `"same"`.
        use_bias: Whether every piece has a bias.
        kernel_initializer: As in `keras.layers.Conv2D` of `filters * pieces` filters.
        bias_initializer: As in `keras.layers.Conv2D`.
        kernel_regularizer: As in `keras.layers.Conv2D`.
        bias_regularizer: As in `keras.layers.Conv2D`.
        kernel_constraint: As in `keras.layers.Conv2D`.
        bias_constraint: As in `keras.layers.Conv2D`.
        **kwargs: Of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, new height, new width, filters)`.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        Goodfellow, Warde-Farley, Mirza, Courville, Bengio, "Maxout Networks", 2013. Rueda,
        Grzeszick, Fink, "Neuron Pruning for Compressing Deep Networks Using Maxout Architectures",
        2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> layer = kc.layers.MaxoutConv2D(8, 3, pieces=3)
    >>> layer.compute_output_shape((1, 6, 6, 2)), layer.macs((None, 6, 6, 2))
    ((1, 4, 4, 8), 6912)
    """

    def __init__(
        self,
        filters,
        kernel_size,
        pieces=2,
        strides=1,
        padding="valid",
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(
            ("filters", filters),
            pieces,
            use_bias,
            kernel_initializer,
            bias_initializer,
            kernel_regularizer,
            bias_regularizer,
            kernel_constraint,
            bias_constraint,
            **kwargs,
        )
        self.kernel_size = pair("kernel_size", kernel_size, self)
        self.strides = pair("strides", strides, self)
        self.padding = validation.one_of("padding", padding, ("valid", "same"), self)
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape):
        self._add_weights((*self.kernel_size, input_shape[-1]), self.filters)
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: input_shape[-1]})

    def product(self, inputs, kernel):
        return ops.conv(inputs, kernel, self.strides, self.padding, "channels_last")

    def compute_output_shape(self, input_shape):
        sizes = zip(input_shape[1:3], self.kernel_size, self.strides, strict=True)
        lengths = (conv_output_length(*size, self.padding) for size in sizes)
        return (input_shape[0], *lengths, self.filters)

    def macs(self, input_shape):
        """Multiply-accumulates of one sample.

        Args:
            input_shape: `(batch, height, width, channels)`; the batch size is ignored.
        """
        positions = math.prod(self.compute_output_shape(input_shape)[1:3])
        per_position = math.prod(self.kernel_size) * input_shape[-1] * self.filters * self.pieces
        return positions * per_position

    @classmethod
    def from_layer(cls, layer):
        """Starts from a trained `keras.layers.Conv2D`: the same outputs.

        Args:
            layer: A built layer, channels last, without groups and dilation. A linear one gets one
                piece, one with ReLU or leaky ReLU two.
        """
        factors = cls._pieces_of(layer, keras.layers.Conv2D)
        plain = layer.groups == 1 and tuple(layer.dilation_rate) == (1, 1)
        if not plain or layer.data_format != "channels_last":
            raise ValueError(
                f"{cls.__name__}.from_layer takes convolutions without groups and dilation, with "
                f"channels last; '{layer.name}' has groups={layer.groups}, "
                f"dilation_rate={layer.dilation_rate}, data_format={layer.data_format!r}."
            )
        config = layer.get_config()
        carried = {name: config[name] for name in (*CARRIED, "strides", "padding")}
        new = cls(layer.filters, layer.kernel_size, len(factors), **carried)
        new.build((None, None, None, layer.kernel.shape[2]))
        new._start_from(layer, factors)
        return new

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
        }
