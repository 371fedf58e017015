"""FakeQuantBatchNormalization: a batch normalisation with no kernel before it to fold into."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress.layers.fake_quant import move_average
from keras_compress.layers.fake_quant_depthwise_conv2d import FakeQuantDepthwiseConv2D


@keras.saving.register_keras_serializable(package="keras_compress")
class FakeQuantBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation that a .tflite computes in integers, between `FakeQuant` layers.

    It trains as `keras.layers.BatchNormalization` does, and can be frozen as one that is folded
    into a kernel. A .tflite has it as a depthwise 1x1 convolution with a scale for each channel,
    which represents its factors exactly: LiteRT's integer multiplication by a vector does not.

    Args:
        **kwargs: Those of `keras.layers.BatchNormalization`, with `axis` the last one.

    Input shape:
        `(batch, ..., channels)`.

    Output shape:
        The same.

    Example:

    >>> layer = FakeQuantBatchNormalization()
    >>> tuple(layer(np.ones((2, 3))).shape)
    (2, 3)
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.frozen = self.add_weight(
            name="frozen", shape=(), initializer="zeros", trainable=False, autocast=False
        )

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=False, mask=mask)
        mean, variance = _moments(ops.cast(inputs, "float32"), mask)
        frozen = ops.greater(self.frozen, 0.5)
        rate = ops.multiply(1.0 - self.momentum, ops.subtract(1.0, self.frozen))
        used_mean = ops.where(frozen, ops.convert_to_tensor(self.moving_mean), mean)
        used_variance = ops.where(frozen, ops.convert_to_tensor(self.moving_variance), variance)
        outputs = ops.batch_normalization(
            ops.cast(inputs, "float32"),
            mean=used_mean,
            variance=used_variance,
            axis=-1,
            offset=self.beta,
            scale=self.gamma,
            epsilon=self.epsilon,
        )
        move_average(self.moving_mean, mean, rate)
        move_average(self.moving_variance, variance, rate)
        return ops.cast(outputs, self.compute_dtype)

    @classmethod
    def from_layer(cls, layer, name=None):
        """Starts from a trained `keras.layers.BatchNormalization`."""
        new = cls.from_config({**layer.get_config(), "name": name or layer.name})
        new.build((*[None] * (layer.input_spec.ndim - 1), layer.moving_mean.shape[0]))
        # The last one, `frozen`, is of this class alone.
        for old, variable in zip(layer.variables, new.variables[:-1], strict=True):
            variable.assign(ops.convert_to_numpy(old))
        return new

    def export_form(self):
        """The same as a depthwise 1x1 convolution."""
        return ChannelAffine.of(self)


@keras.saving.register_keras_serializable(package="keras_compress")
class ChannelAffine(keras.layers.Layer):
    """Export form of `FakeQuantBatchNormalization`: a 1x1 depthwise convolution of any rank."""

    @classmethod
    def of(cls, norm):
        """The form of a built batch normalisation."""
        new = cls(name=norm.name, dtype=norm.dtype_policy)
        channels = norm.moving_mean.shape[0]
        folded = FakeQuantDepthwiseConv2D.from_layer(_identity(channels), batch_norm=_stock(norm))
        new.convolution = folded.export_form()
        return new

    def build(self, input_shape):
        self.built = True

    def call(self, inputs, training=None, mask=None):
        channels = inputs.shape[-1]
        if len(inputs.shape) == 4:
            return self.convolution(inputs)
        inner = math.prod(inputs.shape[1:-1])
        outputs = self.convolution(ops.reshape(inputs, (-1, inner, 1, channels)))
        return ops.reshape(outputs, (-1, *inputs.shape[1:]))


def _moments(inputs, mask):
    """Mean and variance of each channel, of what a mask lets count."""
    axes = tuple(range(len(inputs.shape) - 1))
    if mask is None:
        return ops.moments(inputs, axes)
    weights = ops.expand_dims(ops.cast(mask, inputs.dtype), -1)
    weights = ops.broadcast_to(weights, ops.shape(inputs))
    count = ops.maximum(ops.sum(weights, axes), 1.0)
    mean = ops.divide(ops.sum(ops.multiply(weights, inputs), axes), count)
    squares = ops.square(ops.subtract(inputs, mean))
    return mean, ops.divide(ops.sum(ops.multiply(weights, squares), axes), count)


def _identity(channels):
    layer = keras.layers.DepthwiseConv2D(1, use_bias=False, data_format="channels_last")
    layer.build((None, 1, 1, channels))
    layer.kernel.assign(np.ones((1, 1, channels, 1), "float32"))
    return layer


def _stock(norm):
    layer = keras.layers.BatchNormalization.from_config({**norm.get_config(), "axis": -1})
    layer.build((None, norm.moving_mean.shape[0]))
    for source, target in zip(norm.variables[: len(layer.variables)], layer.variables, strict=True):
        target.assign(ops.convert_to_numpy(source))
    return layer
