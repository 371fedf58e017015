"""What the highway layers share: a gate between a layer and its own input."""

import keras

from keras_compress import validation
from keras_compress.layers.block import Block


class Highway(Block):
    """Base of `y = T * H + (1 - T) * x`: see `HighwayDense`.

    A subclass gives `gated(part, width, activation, bias)`, the layer that `H` and `T` are.
    """

    #: Name of the argument that is the number of outputs.
    _width = None

    def __init__(
        self,
        width,
        activation,
        transform_bias,
        kernel_initializer,
        kernel_regularizer,
        data_format,
        **kwargs,
    ):
        super().__init__(kernel_initializer, kernel_regularizer, data_format, **kwargs)
        if width is not None:
            width = validation.positive_int(self._width, width, self)
        setattr(self, self._width, width)
        self.activation = keras.activations.get(activation)
        self.transform_bias = validation.number("transform_bias", transform_bias, owner=self)

    def gated(self, part, width, activation, bias):
        """The layer of one of the two."""
        raise NotImplementedError

    def make_layers(self, channels):
        width = getattr(self, self._width)
        if width not in (None, channels):
            raise ValueError(
                f"{type(self).__name__} '{self.name}': the input is carried to the output, so that "
                f"both are as wide; got {self._width}={width} with {channels} inputs. Leave "
                f"`{self._width}` out, or put a layer that changes the width before."
            )
        self.plain = self.gated("plain", channels, self.activation, "zeros")
        constant = keras.initializers.Constant(self.transform_bias)
        self.transform = self.gated("transform", channels, "sigmoid", constant)
        self.subtract = self.part(keras.layers.Subtract, "subtract")
        self.multiply = self.part(keras.layers.Multiply, "multiply")
        self.add = self.part(keras.layers.Add, "add")

    def call(self, inputs):
        # T H + (1 - T) x, one product less.
        change = self.subtract([self.plain(inputs), inputs])
        return self.add([inputs, self.multiply([self.transform(inputs), change])])

    def get_config(self):
        return {
            **super().get_config(),
            self._width: getattr(self, self._width),
            "activation": keras.activations.serialize(self.activation),
            "transform_bias": self.transform_bias,
        }
