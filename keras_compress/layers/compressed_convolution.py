"""Base of the layers that replace a 2-D convolution, depthwise or not."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.base import CompressedLayer


class CompressedConvolution(CompressedLayer):
    """Base of layers that replace a 2-D convolution: its geometry.

    A subclass gives `_output_channels` and `output_channels_of(input_channels)`.

    Args:
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        **kwargs: See `CompressedLayer`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, output_channels)`, or channels first.
    """

    _min_ndim = 4

    def __init__(
        self,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        data_format=None,
        dilation_rate=(1, 1),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_size = pair("kernel_size", kernel_size, self)
        self.strides = pair("strides", strides, self)
        self.dilation_rate = pair("dilation_rate", dilation_rate, self)
        self.padding = validation.one_of(
            "padding",
            padding.lower() if isinstance(padding, str) else padding,
            ("valid", "same"),
            self,
        )
        self.data_format = validation.one_of(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
            self,
        )
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                f"{type(self).__name__}: `strides` > 1 does not go with `dilation_rate` > 1; got "
                f"strides={self.strides}, dilation_rate={self.dilation_rate}."
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=4)

    def output_channels_of(self, input_channels):
        """Number of output channels for so many input channels."""
        raise NotImplementedError

    def kernel_macs(self, input_size, output_size):
        """Multiply-accumulates of `apply_kernel` for one sample.

        Args:
            input_size: `(height, width)` of the input.
            output_size: `(height, width)` of the output.
        """
        raise NotImplementedError

    def macs(self, input_shape):
        """Multiply-accumulates of one sample through the compressed form.

        Args:
            input_shape: `(batch, height, width, channels)`, or channels first; the batch size is
                ignored.
        """
        self.check_built("macs")
        output_shape = self.compute_output_shape(input_shape)
        return int(self.kernel_macs(self._size(input_shape), self._size(output_shape)))

    def compute_output_shape(self, input_shape):
        size = tuple(
            conv_output_length(length, kernel, stride, self.padding, dilation)
            for length, kernel, stride, dilation in zip(
                self._size(input_shape),
                self.kernel_size,
                self.strides,
                self.dilation_rate,
                strict=True,
            )
        )
        channels = self.output_channels_of(input_shape[self._channel_axis])
        if self.data_format == "channels_last":
            return (input_shape[0], *size, channels)
        return (input_shape[0], channels, *size)

    def _size(self, shape):
        return tuple(shape[1:3] if self.data_format == "channels_last" else shape[2:4])

    @property
    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    @property
    def _output_channels(self):
        return self.output_channels_of(self.input_channels)

    def _shaped_bias(self):
        if self.data_format == "channels_last":
            return self.bias
        return ops.reshape(self.bias, (1, self._output_channels, 1, 1))

    def _build_shape(self):
        return _image_shape(self.input_channels, self.data_format)

    @classmethod
    def _source_input_shape(cls, layer):
        kernel = getattr(layer, cls.source_kernels[0])
        channels = kernel.shape[2] * getattr(layer, "groups", 1)
        return _image_shape(channels, layer.data_format)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
        }


def conv_output_length(length, kernel, stride, padding, dilation=1):
    """Output length of a convolution along one axis; `None` stays `None`."""
    if length is None:
        return None
    if padding == "same":
        return -(-length // stride)
    return max(0, (length - dilation * (kernel - 1) - 1) // stride + 1)


def pair(name, value, owner):
    """Returns an integer or a pair of integers as a pair, each >= 1."""
    values = validation.positive_ints(
        name, value if hasattr(value, "__iter__") else (value,), owner
    )
    if len(values) == 1:
        values = values * 2
    if len(values) != 2:
        raise ValueError(
            f"{type(owner).__name__}: `{name}` must be an integer or a pair of integers; got "
            f"{name}={value!r}."
        )
    return values


def _image_shape(channels, data_format):
    if data_format == "channels_last":
        return (None, None, None, channels)
    return (None, channels, None, None)
