"""FireModule: few channels squeezed out, many expanded from them (SqueezeNet)."""

import keras

from keras_compress import validation
from keras_compress.decomposition.fire import FireFactors
from keras_compress.layers.block import Block, chain
from keras_compress.layers.compressed_convolution import pair
from keras_compress.layers.fitted_block import (
    carried,
    check_source,
    image_shape,
    kernel_and_bias,
    targets_for,
)


@keras.saving.register_keras_serializable(package="keras_compress")
class FireModule(Block):
    """1x1 convolution to few channels, then a 1x1 and a 3x3 convolution side by side.

    `concat(act(W1 * z), act(W3 * z))` with `z = act(S * x)`. A `Block`: see there for how it runs
    as one layer or as its stock layers.

    Args:
        squeeze: Number of squeezed channels, fewer than expanded ones.
        expand1x1: Number of filters of the 1x1 expansion; they come first in the output.
        expand3x3: Number of filters of the 3x3 expansion.
        strides: Integer or pair, of both expansions.
        padding: `"same"` or `"valid"`, of the 3x3 expansion; the 1x1 reads the centres.
        activation: After the expansions.
        squeeze_activation: After the squeeze.
        use_bias: Whether all three convolutions have a bias.
        kernel_initializer: See `Block`.
        kernel_regularizer: See `Block`.
        data_format: See `Block`.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new height, new width, expand1x1 + expand3x3)`, or channels first.

    Raises:
        ValueError: if a number is not positive, or `squeeze` is not below the expanded channels.

    Reference:
        Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, "SqueezeNet: AlexNet-level accuracy with
        50x fewer parameters and <0.5MB model size", 2016.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> fire = kc.layers.FireModule(16, 64, 64)
    >>> fire.build((None, 55, 55, 96))
    >>> fire.count_params(), fire.macs((None, 55, 55, 96))
    (11920, 35622400)
    """

    def __init__(
        self,
        squeeze,
        expand1x1,
        expand3x3,
        strides=1,
        padding="same",
        activation="relu",
        squeeze_activation="relu",
        use_bias=True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(kernel_initializer, kernel_regularizer, data_format, **kwargs)
        self.squeeze = validation.positive_int("squeeze", squeeze, self)
        self.expand1x1 = validation.positive_int("expand1x1", expand1x1, self)
        self.expand3x3 = validation.positive_int("expand3x3", expand3x3, self)
        if self.squeeze >= self.expand1x1 + self.expand3x3:
            raise ValueError(
                "FireModule: `squeeze` must be below expand1x1 + expand3x3 = "
                f"{self.expand1x1 + self.expand3x3}, or nothing is squeezed; got squeeze={squeeze}."
            )
        self.strides = pair("strides", strides, self)
        self.padding = validation.one_of("padding", padding, ("same", "valid"), self)
        self.activation = keras.activations.get(activation)
        self.squeeze_activation = keras.activations.get(squeeze_activation)
        self.use_bias = bool(use_bias)

    def make_layers(self, channels):
        bias = {"use_bias": self.use_bias}
        expansion = {**bias, "strides": self.strides, "activation": self.activation}
        self.squeeze_conv = self.conv(
            "squeeze1x1", self.squeeze, 1, activation=self.squeeze_activation, **bias
        )
        self.crop = None
        if self.padding == "valid":
            self.crop = self.part(keras.layers.Cropping2D, "crop", 1, data_format=self.data_format)
        self.expand1x1_conv = self.conv("expand1x1", self.expand1x1, 1, **expansion)
        self.expand3x3_conv = self.conv(
            "expand3x3", self.expand3x3, 3, **{**expansion, "padding": self.padding}
        )
        self.concat = self.part(keras.layers.Concatenate, "concat", axis=self.channel_axis)

    def call(self, inputs):
        squeezed = self.squeeze_conv(inputs)
        small = chain([self.crop, self.expand1x1_conv], squeezed)
        return self.concat([small, self.expand3x3_conv(squeezed)])

    @classmethod
    def from_layer(
        cls,
        layer,
        squeeze=None,
        expand1x1=None,
        *,
        input_size=None,
        patches=None,
        responses=None,
        **options,
    ):
        """Starts from a trained 3x3 `keras.layers.Conv2D`: least squares, nothing random.

        The squeeze is linear, its channels those that the kernel's input channels are best mixtures
        of. The first `expand1x1` filters keep one tap of nine, so they lose most: distil the
        result. Name, strides, padding, bias, activation and dtype carry over.

        Args:
            layer: A built layer without groups and dilation.
            squeeze: Number of squeezed channels; by default an eighth of the filters, or of the
                input channels if those are fewer.
            expand1x1: Number of 1x1 filters; by default half of all.
            input_size: `(height, width)` of the input: says which tap a 1x1 convolution of
                `strides` > 1 with padding `"same"` reads. Only needed there.
            patches: Array `(rows, 9 * channels)` that the kernel is multiplied with (im2col): fits
                the responses to them, with a new bias. `None` fits the kernel.
            responses: Array `(rows, filters)` to be given for `patches`; by default what the layer
                gives before its activation.
            **options: Arguments of the class to change.

        Returns:
            A built block.

        Raises:
            ValueError: if the layer is another one, or the numbers do not go with it.
        """
        check_source(cls, layer, ((3, 3),))
        kernel, bias = kernel_and_bias(layer)
        filters, channels = kernel.shape[3], kernel.shape[2]
        if squeeze is None:
            squeeze = max(1, min(filters, channels) // 8)
        expand1x1 = filters // 2 if expand1x1 is None else expand1x1
        owner = f"FireModule.from_layer: layer '{layer.name}'"
        squeeze = validation.integer("squeeze", squeeze, 1, min(channels, filters - 1), owner)
        expand1x1 = validation.integer("expand1x1", expand1x1, 1, filters - 1, owner)
        tap = _tap(layer, input_size, owner)
        factors = FireFactors.fit(kernel, squeeze, expand1x1, tap)
        if patches is not None:
            targets = targets_for(kernel, bias, patches, responses)
            factors, bias = factors.fitted(kernel, patches, targets)
        use_bias = layer.use_bias or patches is not None
        config = {
            **carried(layer),
            "squeeze": squeeze,
            "expand1x1": expand1x1,
            "expand3x3": filters - expand1x1,
            "squeeze_activation": None,
            "use_bias": use_bias,
            **options,
        }
        block = cls.from_config(config)
        block.build(image_shape(layer))
        block.squeeze_conv.kernel.assign(factors.squeeze[None, None])
        block.expand1x1_conv.kernel.assign(factors.expand1x1[None, None])
        block.expand3x3_conv.kernel.assign(factors.expand3x3)
        if use_bias:
            block.expand1x1_conv.bias.assign(bias[:expand1x1])
            block.expand3x3_conv.bias.assign(bias[expand1x1:])
        return block

    def get_config(self):
        return {
            **super().get_config(),
            "squeeze": self.squeeze,
            "expand1x1": self.expand1x1,
            "expand3x3": self.expand3x3,
            "strides": self.strides,
            "padding": self.padding,
            "activation": keras.activations.serialize(self.activation),
            "squeeze_activation": keras.activations.serialize(self.squeeze_activation),
            "use_bias": self.use_bias,
        }


def _tap(layer, input_size, owner):
    """Index of the kernel's tap that the 1x1 expansion reads."""
    if layer.padding == "valid" or max(layer.strides) == 1:
        return 1, 1
    if input_size is None:
        raise ValueError(
            f"{owner} has strides={tuple(layer.strides)} and padding='same': which tap a 1x1 "
            "convolution reads depends on the size of the input; give input_size=(height, width)."
        )
    taps = []
    for size, stride in zip(input_size, layer.strides, strict=True):
        padded = max(0, (-(-size // stride) - 1) * stride + 3 - size)
        taps.append(padded // 2)
    return tuple(taps)
