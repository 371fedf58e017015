"""P4Conv2D: a convolution that is equivariant to rotations by 90 degrees."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.layers.compressed_conv2d import CompressedConv2D, refuse_groups
from keras_compress.layers.plane_groups import check_orientations, plane_group


@keras.saving.register_keras_serializable(package="keras_compress")
class P4Conv2D(CompressedConv2D):
    """Convolution that is equivariant to rotations by 90 degrees (group p4).

    Each filter is used in 4 orientations. If the input is rotated, the output maps are rotated, and
    the orientations of each change places: of `rot90(x)`, output `4 f + h` is `rot90` of what
    output `4 f + (h - 1) % 4` was of `x`. So one set of weights serves all orientations: 4 times
    fewer than a `Conv2D` of equal width has.

    Output channel `4 f + g` is orientation `g` of feature map `f`, and later layers with
    `lifting=False` take it so. Activations, 2-D pooling (2x2 on even sizes), global pooling,
    dropout, additions and concatenations of such maps keep the equivariance. Batch normalization
    needs `GroupBatchNormalization`; `GroupPool` makes maps that only rotate, so that after it and a
    global pooling the outputs are invariant.

    What it buys: fewer parameters at equal width, in training, in a `.keras` file and in a .kcz
    archive. A .tflite holds the 4 copies of each filter, as the stock layer would: same size and
    speed as `expand()`.

    `from_layer` projects a trained kernel on the equivariant ones, by the mean over the group,
    which is the least-squares fit. It is exact for an expanded layer; a kernel that was trained
    without the constraint is far from equivariant and its channels are in no order of orientations,
    so that such a network must be trained anew.

    Args:
        filters: Number of output channels, 4 times that of feature maps.
        kernel_size: Integer, or a pair of equal ones: height and width of the kernel.
        strides: Integer, or a pair of equal ones. The windows must lie symmetrically in the image:
            `"valid"` without a rest (`(size - kernel_size) % strides == 0`), `"same"` with as much
            padding on both sides. Else the layer would not be equivariant, and refuses the input;
            sizes that are open are not checked.
        padding: `"valid"` or `"same"` (odd kernels, or see `strides`).
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer, or a pair of equal ones.
        groups: Must be 1.
        activation: Activation function.
        use_bias: Whether a bias is added: one for each feature map.
        lifting: Whether the input is an image, as for a first layer, without orientations.
        **kwargs: The other arguments of `keras.layers.Conv2D`; regularizer and constraint of the
            kernel act on the stored filters.

    Input shape:
        `(batch, height, width, channels)`, or channels first. Without `lifting`, the channels are
        `4 f + g` as above.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if the orientations do not divide `filters` or, without `lifting`, the input
            channels, kernel, strides or dilation are not the same in height and width, windows do
            not lie symmetrically, or `groups` is not 1.

    Reference:
        Cohen, Welling, "Group Equivariant Convolutional Networks", 2016.

    Example:

    >>> import keras
    >>> layer = P4Conv2D(64, 3, padding="same", lifting=True)
    >>> layer.build((None, 28, 28, 3))
    >>> layer.count_params(), layer.expand().count_params()
    (448, 1792)
    """

    #: Name of the group.
    group = "p4"

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
        lifting=False,
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
        if not isinstance(lifting, bool):
            raise ValueError(
                f"{validation.prefix(self)}`lifting` must be True or False; got "
                f"lifting={lifting!r}."
            )
        self.lifting = lifting
        self._check_geometry(self, self)

    @classmethod
    def _check_geometry(cls, layer, owner):
        """Raises `ValueError` unless a convolution's arguments suit the group."""
        start, order = validation.prefix(owner), plane_group(cls.group).order
        refuse_groups(layer.groups, owner)
        if layer.filters % order:
            raise ValueError(
                f"{start}`filters` counts all output channels, {order} for each feature map, so it "
                f"must be a multiple of {order}; got filters={layer.filters}."
            )
        for name in ("kernel_size", "strides", "dilation_rate"):
            value = tuple(getattr(layer, name))
            if value[0] != value[1]:
                raise ValueError(
                    f"{start}`{name}` must be the same in height and width, since both are rotated "
                    f"into one another; got {name}={value}."
                )
        if layer.strides[0] == 1 and layer.padding == "same":
            _check_border((layer.kernel_size[0] - 1) * layer.dilation_rate[0], layer, None, start)

    @property
    def _order(self):
        return plane_group(self.group).order

    @property
    def _bias_size(self):
        return self.filters // self._order

    def build_kernel(self, input_channels):
        if not self.lifting and input_channels % self._order:
            raise ValueError(
                f"{validation.prefix(self)}the input must have {self._order} orientations for each "
                f"feature map; got {input_channels} channels. For images, and for the first layer "
                "after ordinary ones, use lifting=True."
            )
        group, order = plane_group(self.group), self._order
        self._table = group.filter_table(self.kernel_size[0], input_channels, self.lifting)

        def initializer(shape, dtype=None):
            # Fans of the whole bank, of which these are the first orientations.
            bank = (*shape[:-1], shape[-1] * order)
            return self.kernel_initializer(bank, dtype=dtype)[..., ::order]

        self.kernel = self.add_kernel_weight(
            "kernel", (*self.kernel_size, input_channels, self.filters // order), initializer
        )

    def bank(self):
        """The kernel of the equivalent stock layer, all orientations, as a tensor."""
        rows = ops.reshape(self.kernel, (-1, self.kernel.shape[-1]))
        copies = ops.take(rows, self._table, axis=0)
        return ops.reshape(ops.transpose(copies, (1, 2, 0)), self.kernel_shape(self.input_channels))

    def apply_kernel(self, inputs):
        self._check_size(inputs.shape)
        return self.multiply(inputs, self.bank())

    def reconstruct_kernel(self):
        return ops.convert_to_numpy(self.bank())

    def compute_output_shape(self, input_shape):
        self._check_size(input_shape)
        return super().compute_output_shape(input_shape)

    def _check_size(self, shape):
        output = super().compute_output_shape(shape)
        for length, windows in zip(self._size(shape), self._size(output), strict=True):
            if length is not None:
                span = (self.kernel_size[0] - 1) * self.dilation_rate[0] + 1
                border = (windows - 1) * self.strides[0] + span - length
                _check_border(border, self, length, validation.prefix(self))

    def _shaped_bias(self):
        bias = self._source_bias(self.bias)
        return bias if self.data_format == "channels_last" else ops.reshape(bias, (1, -1, 1, 1))

    def _source_bias(self, bias):
        return ops.repeat(bias, self._order)

    def _stored_bias(self, bias):
        return np.reshape(bias, (-1, self._order)).mean(1)

    @classmethod
    def from_layer(cls, layer, **options):
        if isinstance(layer, cls.source) and layer.built:
            cls._check_geometry(layer, cls.__name__)
        return super().from_layer(layer, **options)

    @classmethod
    def fit_kernel(cls, kernel, *, lifting=False):
        """Projects a kernel on the equivariant ones: the mean over the group.

        Args:
            kernel: Array `(size, size, channels, filters)`.
            lifting: As for the layer.
        """
        group = plane_group(cls.group)
        size, _, channels, filters = kernel.shape
        if not lifting:
            check_orientations(channels, group, cls.__name__)
        copies = kernel.reshape(-1, filters // group.order, group.order)
        rows = np.zeros(copies.shape[:2], kernel.dtype)
        for element, places in enumerate(group.filter_table(size, channels, lifting)):
            rows[places] += copies[..., element] / group.order
        return {"lifting": lifting}, [rows.reshape(size, size, channels, -1)]

    def export_form(self):
        """The stock layer: a .tflite holds the whole bank."""
        return self.expand()

    def get_config(self):
        return {**super().get_config(), "lifting": self.lifting}


def _check_border(border, layer, length, start):
    """Raises `ValueError` unless windows lie symmetrically.

    Args:
        border: By how much the windows reach beyond the image, on both sides together.
        layer: The convolution.
        length: Height or width of the image, or `None` if it does not matter.
        start: Beginning of the message.
    """
    allowed = border == 0 if layer.padding == "valid" else border >= 0 and border % 2 == 0
    if not allowed:
        where = "" if length is None else f", at an image size of {length}"
        raise ValueError(
            f"{start}with kernel_size={tuple(layer.kernel_size)}, strides={tuple(layer.strides)}, "
            f"dilation_rate={tuple(layer.dilation_rate)}, padding={layer.padding!r}{where}, the "
            "windows do not lie symmetrically, and a rotated image would give other outputs. Use "
            "an odd kernel and no strides, and pool; or a size that leaves no rest (odd ones, for "
            "a 3x3 kernel with strides of 2)."
        )
