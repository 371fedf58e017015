"""Base of the layers that replace `keras.layers.Dense`."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.base import CompressedLayer


class CompressedDense(CompressedLayer):
    """Base of layers that replace `keras.layers.Dense`.

    Args:
        units: Size of the output.
        **kwargs: See `CompressedLayer`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.
    """

    source = keras.layers.Dense
    source_arguments = ("units",)
    _channel_axis = -1
    _min_ndim = 2

    def __init__(self, units, activation=None, use_bias=True, **kwargs):
        super().__init__(activation=activation, use_bias=use_bias, **kwargs)
        self.units = validation.positive_int("units", units, self)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def kernel_shape(self, input_channels):
        """Shape of the stock layer's kernel."""
        return (input_channels, self.units)

    def multiply(self, inputs, kernel):
        """The stock layer's product of inputs and a dense kernel."""
        return ops.matmul(inputs, kernel)

    def kernel_macs(self):
        """Multiply-accumulates of `apply_kernel` for one row: by default, those of `multiply`."""
        return math.prod(self.kernel_shape(self.input_channels))

    def macs(self, input_shape=None):
        """Multiply-accumulates of one sample through the compressed form.

        Args:
            input_shape: `(batch, ..., input_dim)`; the batch size is ignored. `None` means one row.
        """
        self.check_built("macs")
        rows = 1 if input_shape is None else math.prod(input_shape[1:-1])
        return int(rows * self.kernel_macs())

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    @property
    def _output_channels(self):
        return self.units

    def _build_shape(self):
        return (None, self.input_channels)

    @classmethod
    def _source_input_shape(cls, layer):
        return (None, layer.kernel.shape[0])

    def get_config(self):
        return {**super().get_config(), "units": self.units}
