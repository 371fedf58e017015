"""Export forms of layers that are nothing but stored kernels: one, or several in a row."""

import keras
from keras import ops

from keras_compress.layers.compressed_conv2d import CompressedConv2D
from keras_compress.layers.compressed_dense import CompressedDense


class StoredLayer:
    """Mixin: a dense or convolutional layer whose kernel a .tflite stores in another form.

    In Keras it computes with the dense kernel, which makes it the oracle of its own export. The
    exporter replaces `multiply` by a product with the stored form.
    """

    stored_kernel = None

    @classmethod
    def of(cls, layer, stored_kernel, **changes):
        """The form of a built layer, for a `layers.stored_kernel` object that holds its kernel.

        Args:
            layer: The layer.
            stored_kernel: The object.
            **changes: Arguments of the stock layer in which the form differs from `layer`.
        """
        config = {**layer.get_config(), **changes}
        names = (*cls._carried, *cls.source_arguments)
        new = cls.from_config({name: config[name] for name in names if name in config})
        new.build(cls._source_input_shape_of(stored_kernel.shape, new))
        new.kernel.assign(stored_kernel.dense())
        if new.bias is not None:
            new.bias.assign(ops.convert_to_numpy(layer.bias))
        new.stored_kernel = stored_kernel
        return new

    def build_kernel(self, input_channels):
        self.kernel = self.add_kernel_weight("kernel", self.kernel_shape(input_channels), "zeros")

    def apply_kernel(self, inputs):
        return self.multiply(inputs, ops.convert_to_tensor(self.kernel))

    def reconstruct_kernel(self):
        return ops.convert_to_numpy(self.kernel)

    def export_form(self):
        """A copy: the exporter puts a marker in its form."""
        return self if self.stored_kernel is None else self.of(self, self.stored_kernel)


@keras.saving.register_keras_serializable(package="keras_compress")
class StoredDense(StoredLayer, CompressedDense):
    """Export form of a dense layer with a stored kernel: see `StoredLayer`."""

    @staticmethod
    def _source_input_shape_of(kernel_shape, layer):
        return (None, kernel_shape[0])


@keras.saving.register_keras_serializable(package="keras_compress")
class StoredConv2D(StoredLayer, CompressedConv2D):
    """Export form of a convolution with a stored kernel: see `StoredLayer`."""

    @staticmethod
    def _source_input_shape_of(kernel_shape, layer):
        channels = kernel_shape[2] * layer.groups
        if layer.data_format == "channels_last":
            return (None, None, None, channels)
        return (None, channels, None, None)


class StoredChain(keras.layers.Layer):
    """Export form of a layer that runs as several layers, one after the other.

    Args:
        stored_parts: List of built layers. The exporter stores the kernels of those that it can.
        **kwargs: `name`, `dtype`, as in Keras.
    """

    def __init__(self, stored_parts, **kwargs):
        super().__init__(**kwargs)
        self.stored_parts = list(stored_parts)

    def call(self, inputs):
        for layer in self.stored_parts:
            inputs = layer(inputs)
        return inputs

    def compute_output_shape(self, input_shape):
        for layer in self.stored_parts:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape
