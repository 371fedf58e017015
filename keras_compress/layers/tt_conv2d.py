"""TTConv2D: a convolution whose kernel is a tensor train."""

import math

import keras
from keras import ops

from keras_compress.decomposition.tensor_train import (
    check_modes,
    conv_contraction_order,
    resolve_modes,
    resolve_ranks,
    tt_conv,
    tt_svd,
    tt_to_matrix,
)
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_conv2d import CompressedConv2D, refuse_groups


@keras.saving.register_keras_serializable(package="keras_compress")
class TTConv2D(CompressedConv2D):
    """Convolution whose kernel is a tensor train (TT) of small cores.

    With `channels = prod(s_k)` and `filters = prod(t_k)` the kernel is a chain of `d + 1` cores: a
    bank of filters `(height, width, r_1)` that all channels share, and `d` cores
    `(r_k, s_k, t_k, r_{k+1})`, `r_{d+1} = 1`. It is never formed: images go through one core after
    another, in the order with the fewest multiply-accumulates (`conv_contraction_order`).
    `input_modes=(channels, 1), output_modes=(1, filters)` is the TT of the kernel without splitting
    the channels, which is larger at equal error.

    What it buys: a .tflite whose layer is the cores alone, run as CONV_2D of single channels,
    RESHAPE, TRANSPOSE and FULLY_CONNECTED. For 3x3 kernels of 256 to 256 channels that is somewhat
    faster than the stock layer at rank 8 and slower at 16: for speed use `FactorizedConv2D`, or
    export `expand()`.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair: height and width of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Must be 1.
        activation: Activation function.
        use_bias: Whether a bias is added.
        input_modes: Factors `s_k` of the input channels. `None`: as even as possible, about 8 each.
        output_modes: Factors `t_k` of `filters`, as many as `input_modes`. `None`: likewise.
        rank: TT-ranks: an integer (every bond gets it, or as much as it can use) or `d` integers,
            from `r_1` on. `from_layer` also takes a float in (0, 1): bound of the relative
            Frobenius error of the kernel.
        kernel_initializer: Spread of the kernel that the cores stand for: each core is normal with
            standard deviation `(sigma^2 / prod r_k)^(1 / (2d + 2))`.
        **kwargs: The other arguments of `keras.layers.Conv2D`; regularizer and constraint of the
            kernel act on each core.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if a product of modes is not the size it should be, the two lists of modes
            differ in length, a rank is larger than the modes allow, or `groups` is not 1.

    Reference:
        Garipov, Podoprikhin, Novikov, Vetrov, "Ultimate Tensorization: Compressing Convolutional
        and FC Layers Alike", 2016.

    Example:

    >>> layer = TTConv2D(128, 3, input_modes=(4, 4, 4), output_modes=(4, 4, 8), rank=8)
    >>> layer.build((None, 14, 14, 64))
    >>> layer.count_params(), layer.expand().count_params()
    (2504, 73856)
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
        input_modes=None,
        output_modes=None,
        rank=8,
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
            **kwargs,
        )
        refuse_groups(self.groups, self)
        self.input_modes, self.output_modes = check_modes(
            input_modes, output_modes, self.filters, self, "filters"
        )
        if self.input_modes and self.output_modes:
            rank = self._resolve_ranks(rank)
        self.rank = rank
        self.cores = []

    def _resolve_ranks(self, rank):
        modes = _with_taps(self.kernel_size, self.input_modes, self.output_modes)
        return resolve_ranks(rank, *modes, self)

    def build_kernel(self, input_channels):
        self.input_modes, self.output_modes = resolve_modes(
            self.input_modes, self.output_modes, input_channels, self.filters, self, "filters"
        )
        self.rank = self._resolve_ranks(self.rank)
        area, d = math.prod(self.kernel_size), len(self.input_modes)
        self._order, self._macs_before, self._macs_after = conv_contraction_order(
            area, math.prod(self.strides), self.input_modes, self.output_modes, self.rank
        )
        sigma = initializer_stddev(
            self.kernel_initializer, area * input_channels, area * self.filters
        )
        stddev = (sigma**2 / math.prod(self.rank)) ** (1 / (2 * d + 2))
        bonds = (*self.rank, 1)
        shapes = [(*self.kernel_size, bonds[0])]
        shapes += [
            (bonds[k], self.input_modes[k], self.output_modes[k], bonds[k + 1]) for k in range(d)
        ]
        self.cores = [
            self.add_kernel_weight(f"core_{k}", shape, self.normal_initializer(stddev, k))
            for k, shape in enumerate(shapes)
        ]

    def apply_kernel(self, inputs):
        first = self.data_format == "channels_first"
        outputs = tt_conv(
            ops.transpose(inputs, (0, 2, 3, 1)) if first else inputs,
            [ops.convert_to_tensor(core) for core in self.cores],
            self.input_modes,
            self.output_modes,
            self._order,
            self._convolve,
        )
        return ops.transpose(outputs, (0, 3, 1, 2)) if first else outputs

    def _convolve(self, images, kernel):
        return ops.conv(
            images,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def reconstruct_kernel(self):
        filters, *cores = (ops.convert_to_numpy(core) for core in self.cores)
        matrix = tt_to_matrix([filters.reshape(1, -1, 1, filters.shape[-1]), *cores])
        return matrix.reshape(self.kernel_shape(self.input_channels))

    def kernel_macs(self, input_size, output_size):
        return math.prod(input_size) * self._macs_before + math.prod(output_size) * self._macs_after

    @classmethod
    def from_layer(cls, layer, **options):
        refuse_groups(getattr(layer, "groups", 1), cls.__name__)
        return super().from_layer(layer, **options)

    @classmethod
    def fit_kernel(cls, kernel, *, input_modes=None, output_modes=None, rank=8):
        """Fits the cores by TT-SVD.

        Args:
            kernel: Array `(height, width, channels, filters)`.
            input_modes: As for the layer.
            output_modes: As for the layer.
            rank: Integer, `d` integers, or a float in (0, 1): error bound.
        """
        *size, channels, filters = kernel.shape
        input_modes, output_modes = resolve_modes(
            input_modes, output_modes, channels, filters, cls.__name__, "filters"
        )
        modes = _with_taps(size, input_modes, output_modes)
        cores, _ = tt_svd(kernel.reshape(-1, filters), *modes, rank)
        arguments = {
            "input_modes": input_modes,
            "output_modes": output_modes,
            "rank": tuple(core.shape[-1] for core in cores[:-1]),
        }
        return arguments, [cores[0].reshape(*size, -1), *cores[1:]]

    def get_config(self):
        return {
            **super().get_config(),
            "input_modes": self.input_modes,
            "output_modes": self.output_modes,
            "rank": self.rank,
        }


def _with_taps(kernel_size, input_modes, output_modes):
    """Modes of the chain, whose first core is the bank of filters."""
    return (math.prod(kernel_size), *input_modes), (1, *output_modes)
