"""ShuffleUnit: the unit of ShuffleNet."""

import keras

from keras_compress import validation
from keras_compress.decomposition.response_regression import FactorsRegression
from keras_compress.decomposition.shuffle import ShuffleFactors
from keras_compress.layers.block import Block, chain
from keras_compress.layers.channel_shuffle import ChannelShuffle, check_groups
from keras_compress.layers.compressed_convolution import pair
from keras_compress.layers.fitted_block import (
    carried,
    check_source,
    image_shape,
    kernel_and_bias,
    targets_for,
)


@keras.saving.register_keras_serializable(package="keras_compress")
class ShuffleUnit(Block):
    """Grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1, and the shortcut around them.

    Batch normalisation follows each convolution, the activation the first and the sum. With strides
    1 the shortcut is the input, added; with larger ones it is a 3x3 average pooling, concatenated:
    its channels come first. A `Block`: see there for how it runs as one layer or as its stock
    layers.

    Args:
        filters: Number of output channels; with strides above 1, those of the shortcut included.
        groups: Groups of the 1x1 convolutions and of the shuffle.
        strides: Integer or pair of equal integers, of the depthwise convolution.
        bottleneck: Channels in the middle; by default a quarter of `filters`.
        group_first: Whether the first 1x1 convolution is grouped too.
        shortcut: Whether there is one. Without, the block stands for a plain convolution.
        kernel_size: Integer or pair, of the depthwise convolution.
        padding: `"same"` or, without a shortcut, `"valid"`.
        activation: After the first convolution and at the end.
        inner_activation: After the first convolution; `"activation"` for the same.
        batch_norm: Whether a batch normalisation follows each convolution. Without, the last one
            has a bias.
        kernel_initializer: See `Block`.
        kernel_regularizer: See `Block`.
        data_format: See `Block`.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new height, new width, filters)`, or channels first.

    Raises:
        ValueError: if `groups` does not divide a number of channels, or input and output of a
            shortcut do not go together.

    Reference:
        Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
        Mobile Devices", 2018.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> unit = kc.layers.ShuffleUnit(240, groups=3)
    >>> unit.build((None, 28, 28, 240))
    >>> unit.macs((None, 28, 28, 240)) // (28 * 28)
    10140
    """

    def __init__(
        self,
        filters,
        groups=3,
        strides=1,
        bottleneck=None,
        group_first=True,
        shortcut=True,
        kernel_size=3,
        padding="same",
        activation="relu",
        inner_activation="activation",
        batch_norm=True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(kernel_initializer, kernel_regularizer, data_format, **kwargs)
        self.filters = validation.positive_int("filters", filters, self)
        self.groups = validation.positive_int("groups", groups, self)
        self.strides = pair("strides", strides, self)
        if self.strides[0] != self.strides[1]:
            raise ValueError(
                "ShuffleUnit: `strides` must be equal, as a depthwise convolution takes them; got "
                f"strides={strides!r}."
            )
        bottleneck = max(1, self.filters // 4) if bottleneck is None else bottleneck
        self.bottleneck = validation.positive_int("bottleneck", bottleneck, self)
        self.group_first = bool(group_first)
        self.shortcut = bool(shortcut)
        self.kernel_size = pair("kernel_size", kernel_size, self)
        allowed = ("same",) if self.shortcut else ("same", "valid")
        self.padding = validation.one_of("padding", padding, allowed, self)
        self.activation = keras.activations.get(activation)
        same = isinstance(inner_activation, str) and inner_activation == "activation"
        self.inner_activation = self.activation if same else keras.activations.get(inner_activation)
        self.batch_norm = bool(batch_norm)
        check_groups("groups", self.groups, self, bottleneck=self.bottleneck)
        if not self._concatenates:
            check_groups("groups", self.groups, self, output=self.filters)

    @property
    def _concatenates(self):
        return self.shortcut and max(self.strides) > 1

    def make_layers(self, channels):
        filters = self.filters
        if self._concatenates:
            filters -= channels
            if filters < 1:
                raise ValueError(
                    f"ShuffleUnit '{self.name}': with strides={self.strides} the output holds the "
                    f"{channels} input channels and new ones; got filters={self.filters}. Give "
                    f"more than {channels}."
                )
            check_groups("groups", self.groups, self, **{"new output": filters})
        elif self.shortcut and channels != filters:
            raise ValueError(
                f"ShuffleUnit '{self.name}': with strides 1 the input is added to the output, so "
                f"that both have as many channels; got filters={filters} with {channels} input "
                f"channels. Give filters={channels}, strides=2 or shortcut=False."
            )
        if self.group_first:
            check_groups("groups", self.groups, self, input=channels)
        groups = self.groups if self.group_first else 1
        self.compress = self.conv("compress", self.bottleneck, 1, groups=groups)
        self.shuffle = self.part(
            ChannelShuffle, "shuffle", self.groups, data_format=self.data_format
        )
        self.depthwise = self.kernel_part(
            keras.layers.DepthwiseConv2D,
            "depthwise",
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            use_bias=False,
        )
        self.expansion = self.conv(
            "expand", filters, 1, groups=self.groups, use_bias=not self.batch_norm
        )
        self.compress_norm = self.depthwise_norm = self.expand_norm = None
        if self.batch_norm:
            self.compress_norm = self.norm("compress_norm")
            self.depthwise_norm = self.norm("depthwise_norm")
            self.expand_norm = self.norm("expand_norm")
        self.compress_act = self.activate("compress_act", self.inner_activation)
        self.pool = self.merge = None
        if self._concatenates:
            self.pool = self.part(
                keras.layers.AveragePooling2D,
                "pool",
                3,
                self.strides,
                "same",
                data_format=self.data_format,
            )
            self.merge = self.part(keras.layers.Concatenate, "concat", axis=self.channel_axis)
        elif self.shortcut:
            self.merge = self.part(keras.layers.Add, "add")
        self.act = self.activate("act", self.activation)

    def call(self, inputs):
        first = [self.compress, self.compress_norm, self.compress_act, self.shuffle]
        second = [self.depthwise, self.depthwise_norm, self.expansion, self.expand_norm]
        outputs = chain([*first, *second], inputs)
        if self.merge is not None:
            outputs = self.merge([chain([self.pool], inputs), outputs])
        return self.act(outputs)

    @classmethod
    def from_layer(cls, layer, groups=None, rank=None, *, patches=None, responses=None, **options):
        """Starts from a trained `keras.layers.Conv2D`: least squares.

        Linear, without shortcut and batch normalisation: `groups^2 * rank` channels in the middle,
        of which each pair of an input group and an output group has `rank`. Name, strides, padding,
        bias, activation and dtype carry over.

        Args:
            layer: A built layer without groups and dilation.
            groups: By default the largest of 4, 3, 2 that divides input channels and filters.
            rank: By default as many as give about as many middle channels as there are filters.
            patches: Array `(rows, taps * channels)` that the kernel is multiplied with (im2col):
                fits the responses to them, with a new bias. `None` fits the kernel: alternating
                least squares.
            responses: Array `(rows, filters)` to be given for `patches`; by default what the layer
                gives before its activation.
            **options: Arguments of the class to change.

        Returns:
            A built block.

        Raises:
            ValueError: if the layer is another one, or groups do not divide its channels.
        """
        check_source(cls, layer)
        kernel, bias = kernel_and_bias(layer)
        channels, filters = kernel.shape[2:]
        if groups is None:
            divides = [n for n in (4, 3, 2) if channels % n == 0 and filters % n == 0]
            groups = divides[0] if divides else 1
        owner = f"{cls.__name__}.from_layer: layer '{layer.name}'"
        groups = validation.positive_int("groups", groups, owner)
        check_groups("groups", groups, owner, input=channels, output=filters)
        rank = max(1, round(filters / groups**2)) if rank is None else rank
        rank = validation.positive_int("rank", rank, owner)
        factors = ShuffleFactors.fit(kernel, (rank,), groups)
        if patches is not None:
            regression = FactorsRegression(patches, factors)
            regression.fit(targets_for(kernel, bias, patches, responses))
            factors, bias = regression.solution
        config = {
            **carried(layer),
            "filters": filters,
            "groups": groups,
            "bottleneck": groups**2 * rank,
            "kernel_size": layer.kernel_size,
            "shortcut": False,
            "inner_activation": None,
            "batch_norm": False,
            **options,
        }
        block = cls.from_config(config)
        block.build(image_shape(layer))
        parts = (block.compress, block.depthwise, block.expansion)
        for part, array in zip(parts, factors.kernels(), strict=True):
            part.kernel.assign(array)
        if not block.batch_norm:
            block.expansion.bias.assign(bias)
        return block

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "groups": self.groups,
            "strides": self.strides,
            "bottleneck": self.bottleneck,
            "group_first": self.group_first,
            "shortcut": self.shortcut,
            "kernel_size": self.kernel_size,
            "padding": self.padding,
            "activation": keras.activations.serialize(self.activation),
            "inner_activation": keras.activations.serialize(self.inner_activation),
            "batch_norm": self.batch_norm,
        }
