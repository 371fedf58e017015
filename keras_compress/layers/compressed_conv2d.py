"""Base of the layers that replace `keras.layers.Conv2D`."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.compressed_convolution import CompressedConvolution


class CompressedConv2D(CompressedConvolution):
    """Base of layers that replace `keras.layers.Conv2D`.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Number of groups; 1 unless the subclass says otherwise.
        **kwargs: See `CompressedLayer`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.
    """

    source = keras.layers.Conv2D
    source_arguments = (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "data_format",
        "dilation_rate",
        "groups",
    )

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
        **kwargs,
    ):
        super().__init__(
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            **kwargs,
        )
        self.filters = validation.positive_int("filters", filters, self)
        self.groups = validation.positive_int("groups", groups, self)

    def kernel_shape(self, input_channels):
        """Shape of the stock layer's kernel."""
        return (*self.kernel_size, input_channels // self.groups, self.filters)

    def kernel_macs(self, input_size, output_size):
        """Multiply-accumulates of `apply_kernel` for one sample: by default, of `multiply`."""
        return math.prod(output_size) * math.prod(self.kernel_shape(self.input_channels))

    def multiply(self, inputs, kernel):
        """The stock layer's convolution of inputs and a dense kernel."""
        return ops.conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )

    def output_channels_of(self, input_channels):
        return self.filters

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "groups": self.groups}


def refuse_groups(groups, owner):
    """Raises `ValueError` if there is more than one group."""
    if groups != 1:
        raise ValueError(
            f"{validation.prefix(owner)}`groups` must be 1; got groups={groups}. A grouped "
            "convolution is small already: leave it as it is, or split it into one layer a group."
        )
