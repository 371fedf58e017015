"""DepthwiseSeparableConv2D: the block of MobileNet."""

import keras

from keras_compress import validation
from keras_compress.decomposition.depthwise_separable import DepthwiseSeparableFactors
from keras_compress.decomposition.response_regression import FactorsRegression
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
class DepthwiseSeparableConv2D(Block):
    """Depthwise convolution, then a 1x1 convolution, each with batch normalisation and activation.

    A share `1 / filters + 1 / (height * width)` of the multiply-accumulates of the convolution that
    it stands for. Unlike `keras.layers.SeparableConv2D` it normalises and activates in between, and
    is a `Block`: see there for how it runs as one layer or as its stock layers.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair, of the depthwise convolution.
        strides: Integer or pair of equal integers, of the depthwise convolution.
        padding: `"same"` or `"valid"`.
        depth_multiplier: Depthwise filters of each input channel.
        activation: At the end.
        depthwise_activation: Between the two; `"activation"` for the same.
        batch_norm: Whether a batch normalisation follows each convolution. Without, the 1x1
            convolution has a bias.
        kernel_initializer: See `Block`.
        kernel_regularizer: See `Block`.
        data_format: See `Block`.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new height, new width, filters)`, or channels first.

    Raises:
        ValueError: if a number is not positive, or strides differ.

    Reference:
        Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
        Applications", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> conv = keras.layers.Conv2D(64, 3, padding="same")
    >>> conv.build((None, None, None, 32))
    >>> block = kc.layers.DepthwiseSeparableConv2D.from_layer(conv)
    >>> block.macs((None, 8, 8, 32)) / (8 * 8 * 9 * 32 * 64) == 1 / 64 + 1 / 9
    True
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        strides=1,
        padding="same",
        depth_multiplier=1,
        activation="relu",
        depthwise_activation="activation",
        batch_norm=True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(kernel_initializer, kernel_regularizer, data_format, **kwargs)
        self.filters = validation.positive_int("filters", filters, self)
        self.kernel_size = pair("kernel_size", kernel_size, self)
        self.strides = pair("strides", strides, self)
        if self.strides[0] != self.strides[1]:
            raise ValueError(
                "DepthwiseSeparableConv2D: `strides` must be equal, as a depthwise convolution "
                f"takes them; got strides={strides!r}."
            )
        self.padding = validation.one_of("padding", padding, ("same", "valid"), self)
        self.depth_multiplier = validation.positive_int("depth_multiplier", depth_multiplier, self)
        self.activation = keras.activations.get(activation)
        same = isinstance(depthwise_activation, str) and depthwise_activation == "activation"
        self.depthwise_activation = (
            self.activation if same else keras.activations.get(depthwise_activation)
        )
        self.batch_norm = bool(batch_norm)

    def make_layers(self, channels):
        self.depthwise = self.kernel_part(
            keras.layers.DepthwiseConv2D,
            "depthwise",
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            depth_multiplier=self.depth_multiplier,
            use_bias=False,
        )
        self.pointwise = self.conv("pointwise", self.filters, 1, use_bias=not self.batch_norm)
        self.depthwise_norm = self.pointwise_norm = None
        if self.batch_norm:
            self.depthwise_norm = self.norm("depthwise_norm")
            self.pointwise_norm = self.norm("pointwise_norm")
        self.depthwise_act = self.activate("depthwise_act", self.depthwise_activation)
        self.pointwise_act = self.activate("pointwise_act", self.activation)

    def call(self, inputs):
        first = [self.depthwise, self.depthwise_norm, self.depthwise_act]
        return chain([*first, self.pointwise, self.pointwise_norm, self.pointwise_act], inputs)

    @classmethod
    def from_layer(cls, layer, depth_multiplier=1, *, patches=None, responses=None, **options):
        """Starts from a trained `keras.layers.Conv2D`: least squares, nothing random.

        Linear in between and without batch normalisation. Name, strides, padding, bias, activation
        and dtype carry over; `depth_multiplier` equal to the number of taps is exact.

        Args:
            layer: A built layer without groups and dilation.
            depth_multiplier: Depthwise filters of each input channel, the rank of the fit.
            patches: Array `(rows, taps * channels)` that the kernel is multiplied with (im2col):
                fits the responses to them, with a new bias. `None` fits the kernel: truncated SVDs.
            responses: Array `(rows, filters)` to be given for `patches`; by default what the layer
                gives before its activation.
            **options: Arguments of the class to change.

        Returns:
            A built block.

        Raises:
            ValueError: if the layer is another one, or the multiplier is out of range.
        """
        check_source(cls, layer)
        kernel, bias = kernel_and_bias(layer)
        (limit,) = DepthwiseSeparableFactors.limits(kernel.shape)
        owner = f"{cls.__name__}.from_layer: layer '{layer.name}'"
        terms = validation.integer("depth_multiplier", depth_multiplier, 1, limit, owner)
        factors = DepthwiseSeparableFactors.fit(kernel, (terms,))
        if patches is not None:
            regression = FactorsRegression(patches, factors)
            regression.fit(targets_for(kernel, bias, patches, responses))
            factors, bias = regression.solution
        config = {
            **carried(layer),
            "filters": layer.filters,
            "kernel_size": layer.kernel_size,
            "depth_multiplier": terms,
            "depthwise_activation": None,
            "batch_norm": False,
            **options,
        }
        block = cls.from_config(config)
        block.build(image_shape(layer))
        depthwise, pointwise = factors.arrays
        block.depthwise.kernel.assign(depthwise)
        block.pointwise.kernel.assign(pointwise)
        if not block.batch_norm:
            block.pointwise.bias.assign(bias)
        return block

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "depth_multiplier": self.depth_multiplier,
            "activation": keras.activations.serialize(self.activation),
            "depthwise_activation": keras.activations.serialize(self.depthwise_activation),
            "batch_norm": self.batch_norm,
        }
