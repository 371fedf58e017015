"""DenseBlock: every convolution reads all maps before it."""

import keras

from keras_compress import validation
from keras_compress.layers.block import Block, chain


@keras.saving.register_keras_serializable(package="keras_compress")
class DenseBlock(Block):
    """`num_layers` times BN, ReLU, 3x3 convolution to `growth_rate` maps, concatenated to the rest.

    Layer l reads the input and the maps of all layers before it. A `Block`: see there for how it
    runs as one layer or as its stock layers.

    Args:
        num_layers: Number of 3x3 convolutions.
        growth_rate: Maps that each adds.
        bottleneck: Whether BN, ReLU and a 1x1 convolution to `4 * growth_rate` maps come before
            each.
        activation: The ReLU.
        dropout: Rate of a dropout after each convolution.
        kernel_initializer: See `Block`.
        kernel_regularizer: See `Block`.
        data_format: See `Block`.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, height, width, channels + num_layers * growth_rate)`, or channels first.

    Raises:
        ValueError: if a number is not positive, or `dropout` not in [0, 1).

    Reference:
        Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> kc.layers.DenseBlock(12, 12).compute_output_shape((None, 32, 32, 16))
    (None, 32, 32, 160)
    """

    def __init__(
        self,
        num_layers,
        growth_rate,
        bottleneck=False,
        activation="relu",
        dropout=0.0,
        kernel_initializer="he_normal",
        kernel_regularizer=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(kernel_initializer, kernel_regularizer, data_format, **kwargs)
        self.num_layers = validation.positive_int("num_layers", num_layers, self)
        self.growth_rate = validation.positive_int("growth_rate", growth_rate, self)
        self.bottleneck = bool(bottleneck)
        self.activation = keras.activations.get(activation)
        self.dropout = validation.number("dropout", dropout, 0, 1, high_open=True, owner=self)

    def make_layers(self, channels):
        self.branches, self.concats = [], []
        for number in range(1, self.num_layers + 1):
            branch = []
            if self.bottleneck:
                branch += self._layer(f"{number}_bottleneck", 4 * self.growth_rate, 1)
            self.branches.append(branch + self._layer(str(number), self.growth_rate, 3))
            concat = self.part(keras.layers.Concatenate, f"{number}_concat", axis=self.channel_axis)
            self.concats.append(concat)

    def _layer(self, part, filters, size):
        layers = [
            self.norm(f"{part}_norm"),
            self.activate(f"{part}_act", self.activation),
            self.conv(f"{part}_conv", filters, size),
        ]
        if self.dropout:
            layers.append(self.part(keras.layers.Dropout, f"{part}_dropout", self.dropout))
        return layers

    def call(self, inputs):
        maps = inputs
        for branch, concat in zip(self.branches, self.concats, strict=True):
            maps = concat([maps, chain(branch, maps)])
        return maps

    def get_config(self):
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "growth_rate": self.growth_rate,
            "bottleneck": self.bottleneck,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
        }
