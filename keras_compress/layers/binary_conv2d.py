"""BinaryConv2D: a convolution with weights, and by default inputs, of one bit."""

import keras
from keras import ops

from keras_compress.layers.binary_kernel import BinaryKernel
from keras_compress.layers.quant_conv2d import QuantConv2D
from keras_compress.quantizers import WeightClip


@keras.saving.register_keras_serializable(package="keras_compress")
class BinaryConv2D(BinaryKernel, QuantConv2D):
    """Convolution that multiplies signs by signs.

    `QuantConv2D` with `kc.quantizers.Sign` for weights and inputs, and XNOR-Net's K where asked
    for; the twin of `BinaryDense`, where training, storage and the forms of the literature (BNN,
    BinaryConnect, BWN, XNOR-Net) are described. Put it in the order batch normalisation,
    BinaryConv2D, pooling; keep the first and the last layer of a network in float.

    With `padding="same"` the border is zeros, added after the input quantizer: it adds nothing to
    the sums. XNOR-Net's K is the mean of `|x|` over the channels (of the group) and the window;
    the window's part outside of the image is left out of the mean, so that for inputs and weights
    of one magnitude the layer equals Conv2D at the border as well. In inference K costs an average
    pool and a product.

    A .tflite gives the sums of signs exactly; for `padding="same"` it holds one more input channel.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Number of groups; divides the channels and `filters`.
        activation: Activation function.
        use_bias: Whether a bias is added. It stays float.
        input_quantizer: Quantizer of the inputs: a `kc.quantizers.Quantizer` without a scale, its
            name or configuration, or `None` (float inputs).
        scale: `None` (weights are -1 and 1) or `"mean_abs"`: each filter has a scale `mean|w|`.
        input_scale: `None` or `"xnor"`: outputs are multiplied by the map K. The gradient runs
            through K.
        ste: Straight-through gradient of the weights: `"clip"`, `"identity"` or, with a scale,
            `"scaled"` (XNOR-Net's formula): see `kc.quantizers.Quantizer`.
        stochastic: Whether training draws the signs of the weights.
        seed: Seed of these draws.
        kernel_constraint: Constraint of the latent weights; by default they are clipped to [-1, 1]
            after each update. `None` for none.
        **kwargs: `grad_quantizer` and `update_quantizer` of `QuantDense`, and the other arguments
            of `keras.layers.Conv2D`; initializer and regularizer of the kernel act on the latent
            weights.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if an option is unknown, `input_scale="xnor"` comes without an input quantizer,
            `ste="scaled"` without a scale, the input quantizer has a scale, or `groups` does not
            divide the channels or `filters`.

    Reference:
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016.
        Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net: ImageNet Classification Using Binary
        Convolutional Neural Networks", 2016.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((28, 28, 1)),
    ...     keras.layers.Conv2D(32, 3),
    ...     keras.layers.BatchNormalization(),
    ...     BinaryConv2D(64, 3, scale="mean_abs", input_scale="xnor"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> model.layers[2].storage_bits()
    22528
    """

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
        input_quantizer="sign",
        scale=None,
        input_scale=None,
        ste="clip",
        stochastic=False,
        seed=None,
        kernel_constraint=WeightClip(1.0),  # noqa: B008 - holds no state
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
            input_quantizer=input_quantizer,
            scale=scale,
            input_scale=input_scale,
            ste=ste,
            stochastic=stochastic,
            seed=seed,
            kernel_constraint=kernel_constraint,
            **kwargs,
        )

    def magnitude(self, inputs):
        mean = self._group_means(ops.abs(inputs))
        if max(self.dilation_rate) == 1:
            box = ops.average_pool(
                mean, self.kernel_size, self.strides, self.padding, self.data_format
            )
        else:
            box = self._dilated_box(mean)
        if self.groups == 1:
            return box
        return ops.repeat(box, self.filters // self.groups, axis=self._channel_axis)

    def _group_means(self, values):
        """Mean over the channels of each group."""
        axis = self._channel_axis % 4
        if self.groups == 1:
            return ops.mean(values, axis=axis, keepdims=True)
        shape = list(ops.shape(values))
        shape[axis : axis + 1] = [self.groups, self.input_channels // self.groups]
        return ops.mean(ops.reshape(values, shape), axis=axis + 1)

    def _dilated_box(self, mean):
        """Average pool of a dilated window, of which the part outside of the image is left out."""
        kernel = ops.ones((*self.kernel_size, self.groups, 1), dtype=mean.dtype)
        sums, counts = (
            ops.depthwise_conv(
                values,
                kernel,
                padding=self.padding,
                data_format=self.data_format,
                dilation_rate=self.dilation_rate,
            )
            for values in (mean, ops.ones_like(mean[:1]))
        )
        return ops.divide(sums, counts)
