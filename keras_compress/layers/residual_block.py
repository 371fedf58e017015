"""ResidualBlock: two 3x3 convolutions and a way around them."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.block import Block, chain
from keras_compress.layers.compressed_convolution import pair


@keras.saving.register_keras_serializable(package="keras_compress")
class ResidualBlock(Block):
    """`act(F(x) + shortcut(x))`, `F` two 3x3 convolutions with batch normalisation.

    Where shape and channels stay, the shortcut is the input itself. A `Block`: see there for how it
    runs as one layer or as its stock layers.

    Args:
        filters: Number of output channels.
        strides: Integer or pair, of the first convolution and of the shortcut.
        shortcut: Where the shape changes: `"pad"`, every `strides`-th position and channels of
            zeros added (option A of the paper: no weights), or `"projection"`, a 1x1 convolution
            with batch normalisation (option B).
        activation: In between and at the end.
        kernel_initializer: See `Block`.
        kernel_regularizer: See `Block`.
        data_format: See `Block`.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new height, new width, filters)`, or channels first.

    Raises:
        ValueError: if a number is not positive, or `"pad"` would have to take channels away.

    Reference:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> block = kc.layers.ResidualBlock(32, strides=2, shortcut="projection")
    >>> block.compute_output_shape((None, 8, 8, 16))
    (None, 4, 4, 32)
    """

    def __init__(
        self,
        filters,
        strides=1,
        shortcut="pad",
        activation="relu",
        kernel_initializer="he_normal",
        kernel_regularizer=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(kernel_initializer, kernel_regularizer, data_format, **kwargs)
        self.filters = validation.positive_int("filters", filters, self)
        self.strides = pair("strides", strides, self)
        self.shortcut = validation.one_of("shortcut", shortcut, ("pad", "projection"), self)
        self.activation = keras.activations.get(activation)

    def make_layers(self, channels):
        self.conv1 = self.conv("conv1", self.filters, 3, strides=self.strides)
        self.norm1 = self.norm("norm1")
        self.act1 = self.activate("act1", self.activation)
        self.conv2 = self.conv("conv2", self.filters, 3)
        self.norm2 = self.norm("norm2")
        self.pick = self.projection = self.projection_norm = None
        self.added = 0
        if self.shortcut == "projection":
            if channels != self.filters or max(self.strides) > 1:
                self.projection = self.conv("projection", self.filters, 1, strides=self.strides)
                self.projection_norm = self.norm("projection_norm")
        else:
            self.added = self.filters - channels
            if self.added < 0:
                raise ValueError(
                    f"ResidualBlock '{self.name}': shortcut='pad' adds channels, and filters="
                    f"{self.filters} are fewer than the {channels} of the input; take "
                    "shortcut='projection'."
                )
            if max(self.strides) > 1:
                # A window of one position: every so many-th.
                self.pick = self.part(
                    keras.layers.MaxPooling2D,
                    "pick",
                    1,
                    self.strides,
                    data_format=self.data_format,
                )
        self.add = self.part(keras.layers.Add, "add")
        self.act = self.activate("act", self.activation)

    def call(self, inputs):
        branch = [self.conv1, self.norm1, self.act1, self.conv2, self.norm2]
        short = chain([self.pick, self.projection, self.projection_norm], inputs)
        if self.added:
            widths = [(0, 0)] * 4
            widths[self.channel_axis] = (0, self.added)
            short = ops.pad(short, widths)
        return self.act(self.add([short, chain(branch, inputs)]))

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "shortcut": self.shortcut,
            "activation": keras.activations.serialize(self.activation),
        }
