"""StructuredConv2D: a convolution that a crossbar with few types of inputs can run."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.decomposition.structured import TYPES, project_s4, s4_patterns
from keras_compress.layers.quant_conv2d import QuantConv2D


@keras.saving.register_keras_serializable(package="keras_compress")
class StructuredConv2D(QuantConv2D):
    """Convolution whose kernel slices have four strengths, placed by commuting permutations.

    Each slice (one input channel, one filter) is `mask[i, j] * strength[pattern[i, j]]`: see
    `decomposition.structured`. Latent float weights are projected on the nearest such kernel in
    each forward pass, exactly, and get the gradient of the projected ones (straight-through).
    A `kernel_quantizer` then quantises the projected kernel: with `"ternary"` strengths are -1, 0
    and 1 times a scale.

    What it buys: `storage_bits` of a pattern's index, four strengths and a mask for each slice. A
    .tflite knows no such kernels: it is that of `QuantConv2D`, small by `kernel_quantizer` alone.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Number of groups; divides the channels and `filters`.
        activation: Activation function.
        use_bias: Whether a bias is added.
        family: `"s4"`: patterns of pairs of commuting permutations of four types.
        kernel_quantizer: Quantizer of the projected weights: see `QuantConv2D`.
        input_quantizer: Quantizer of the inputs: see `QuantConv2D`.
        **kwargs: The other arguments of `QuantConv2D`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if `family` is unknown, or as `QuantConv2D`.

    Reference:
        Appuswamy, Nayak, Arthur, Esser, Merolla, McKinstry, Melano, Flickner, Modha, "Structured
        Convolution Matrices for Energy-efficient Deep Learning", 2016.

    Example:

    >>> layer = StructuredConv2D(64, 3, kernel_quantizer="ternary", use_bias=False)
    >>> layer.build((None, 28, 28, 32))
    >>> layer.expand().count_params() * 32 > 10 * layer.storage_bits()
    True
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
        family="s4",
        kernel_quantizer=None,
        input_quantizer=None,
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
            kernel_quantizer=kernel_quantizer,
            input_quantizer=input_quantizer,
            **kwargs,
        )
        self.family = validation.one_of("family", family, ("s4",), self)

    def latent_kernel(self):
        kernel = super().latent_kernel()
        projected = project_s4(ops.stop_gradient(kernel))
        # The zero added here carries the gradient and leaves the projected kernel exact.
        return ops.add(projected, ops.subtract(kernel, ops.stop_gradient(kernel)))

    def kernel_bits(self):
        slices = math.prod(self.kernel.shape[2:])
        quantizer = self.kernel_quantizer
        strength = 32 if quantizer is None else quantizer.bits
        scales = 0 if quantizer is None else 32 * quantizer.scale_count(self.kernel.shape)
        pattern = (len(s4_patterns(self.kernel_size)) - 1).bit_length()
        mask = math.prod(self.kernel_size)
        return slices * (pattern + TYPES * strength + mask) + scales

    def export_form(self):
        """A `QuantConv2D` in its export form: the projection is done once, here."""
        config = self.get_config()
        del config["family"]
        form = QuantConv2D.from_config(config)
        form.build(self._build_shape())
        form.kernel.assign(ops.convert_to_numpy(self.latent_kernel()))
        if form.bias is not None:
            form.bias.assign(ops.convert_to_numpy(self.bias))
        return form.export_form()

    def get_config(self):
        return {**super().get_config(), "family": self.family}
