"""CodebookConv2D: a convolution whose kernel is codes of a codebook."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.codebook_weights import CodebookWeights
from keras_compress.layers.compressed_conv2d import CompressedConv2D
from keras_compress.layers.compressed_convolution import conv_output_length
from keras_compress.layers.stored_layers import StoredConv2D


@keras.saving.register_keras_serializable(package="keras_compress")
class CodebookConv2D(CodebookWeights, CompressedConv2D):
    """Convolution whose weights are drawn from a codebook: only codes and centres are stored.

    The convolutional twin of `CodebookDense`, where methods, training and storage are described.
    Segments are cut along the input channels, and a book is shared by all kernel positions.

    With `lookup=True` the inner products of each input pixel are computed once, and used by every
    window that the pixel is in.

    In a .tflite 1x1 kernels are stored like dense ones. Larger kernels run as int8, or with
    `to_tflite(optimize_for="size")` at their own bits; grouped convolutions and channels first stay
    float.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Number of groups; divides the channels and `filters`.
        activation: Activation function.
        use_bias: Whether a bias is added. It is not coded.
        k: Centres of a book, at most 65536; by default 16. `from_layer` takes fewer where there are
            fewer vectors.
        bits: `log2` of `k`, in the place of it.
        method: `"kmeans"`, `"pq"` or `"rq"`.
        segment: Weights of a segment, a divisor of the input channels (of one group); see
            `CodebookDense`.
        stages: Stages of `"rq"`, by default 2.
        keep_zero: Whether the first value is zero, for `"kmeans"` of single weights. `from_layer`
            keeps zeros by default, if there are any.
        lookup: Whether inner products are looked up in tables; not for `"kmeans"`, nor for groups.
        **kwargs: The other arguments of `keras.layers.Conv2D`; `kernel_initializer` gives the
            spread of the kernel, regularizer and constraint of the kernel act on the centres.

    Input shape:
        `(batch, height, width, channels)`, or channels first. With `lookup=True`, strides and
        `padding="same"`, height and width must be known.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if an argument is not of these, or they do not go together.

    Reference:
        Wu, Leng, Wang, Hu, Cheng, "Quantized Convolutional Neural Networks for Mobile Devices",
        2016.
        Han, Mao, Dally, "Deep Compression", 2016.

    Example:

    >>> layer = CodebookConv2D(128, 3, method="pq", segment=8, k=64, use_bias=False)
    >>> layer.build((None, 14, 14, 64))
    >>> layer.codes.shape == (1, 3, 3, 8, 128), layer.centres.shape == (1, 8, 64, 8)
    (True, True)
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
        k=None,
        bits=None,
        method="kmeans",
        segment=None,
        stages=None,
        keep_zero=False,
        lookup=False,
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
            k=k,
            bits=bits,
            method=method,
            segment=segment,
            stages=stages,
            keep_zero=keep_zero,
            lookup=lookup,
            **kwargs,
        )
        _check_groups(self.lookup, self.groups, self)

    @classmethod
    def from_layer(cls, layer, **options):
        # Before the fit, and not inside Keras's from_config(), which would make it a TypeError.
        _check_groups(options.get("lookup"), getattr(layer, "groups", 1), cls.__name__)
        return super().from_layer(layer, **options)

    def build_kernel(self, input_channels):
        for what, channels in (("filters", self.filters), ("input channels", input_channels)):
            if channels % self.groups:
                raise ValueError(
                    f"{validation.prefix(self)}`groups` must divide the {what}, {channels}; got "
                    f"groups={self.groups}."
                )
        super().build_kernel(input_channels)

    def _apply_tables(self, inputs):
        if self.data_format == "channels_first":
            inputs = ops.transpose(inputs, (0, 2, 3, 1))
        self._check_size(inputs.shape[1:3])
        padded = ops.pad(inputs, ((0, 0), *border(self, inputs.shape[1:3]), (0, 0)))
        # A zero of the border gives tables of zeros.
        tables, codes = self._tables(padded), self._wide_codes()
        spans = [(k - 1) * d for k, d in zip(self.kernel_size, self.dilation_rate, strict=True)]
        total = None
        for i in range(self.kernel_size[0]):
            for j in range(self.kernel_size[1]):
                top, left = i * self.dilation_rate[0], j * self.dilation_rate[1]
                # A slice that ends at the last axis's length has no negative end.
                bottom, right = (top - spans[0]) or None, (left - spans[1]) or None
                window = tables[
                    :, top : bottom : self.strides[0], left : right : self.strides[1], :
                ]
                outputs = self._look_up(window, codes[:, i, j])
                total = outputs if total is None else ops.add(total, outputs)
        if self.data_format == "channels_first":
            total = ops.transpose(total, (0, 3, 1, 2))
        return total

    def _check_size(self, size):
        open_axis = any(
            n is None and stride > 1 for n, stride in zip(size, self.strides, strict=True)
        )
        if open_axis and self.padding == "same":
            raise ValueError(
                f"{validation.prefix(self)}with `lookup`, strides and padding='same' the input "
                f"must have a known height and width; got {tuple(size)}. Give keras.Input a "
                "size, or use lookup=False."
            )

    def kernel_macs(self, input_size, output_size):
        if not self.lookup:
            return super().kernel_macs(input_size, output_size)
        # Tables of each input pixel, then one addition for each code and output pixel.
        tables = self.stages * self.k * self.input_channels
        return math.prod(input_size) * tables + math.prod(output_size) * math.prod(self.codes.shape)

    def export_form(self):
        """Codes and centres, decoded once when the .tflite is loaded; tables stay tables."""
        return self if self.lookup else StoredConv2D.of(self, self._stored_kernel())


def _check_groups(lookup, groups, owner):
    if lookup and groups > 1:
        raise ValueError(
            f"{validation.prefix(owner)}`lookup` is for convolutions of one group; got "
            f"groups={groups}. Use lookup=False."
        )


def border(layer, size):
    """Zeros that a convolution adds around its input.

    Args:
        layer: A stock or compressed convolution.
        size: `(height, width)` of the input; an axis without strides may be `None`.

    Returns:
        `((top, bottom), (left, right))`.
    """
    if layer.padding == "valid":
        return (0, 0), (0, 0)
    pairs = []
    for length, kernel, stride, dilation in zip(
        size, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
    ):
        total = (kernel - 1) * dilation
        # Without strides it does not depend on the length.
        if length is not None:
            outputs = conv_output_length(length, kernel, stride, "same", dilation)
            total = max(0, (outputs - 1) * stride + total + 1 - length)
        pairs.append((total // 2, total - total // 2))
    return tuple(pairs)
