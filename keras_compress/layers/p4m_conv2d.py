"""P4MConv2D: a convolution that is equivariant to rotations by 90 degrees and mirrors."""

import keras

from keras_compress.layers.p4_conv2d import P4Conv2D


@keras.saving.register_keras_serializable(package="keras_compress")
class P4MConv2D(P4Conv2D):
    """Convolution that is equivariant to rotations by 90 degrees and to mirrors (group p4m).

    As `P4Conv2D`, where everything is described, with 8 orientations: output channel `8 f + g` is
    orientation `g = 4 b + s` of feature map `f`, its filter mirrored (left and right) `b` times and
    then rotated `s` times. `filters` is a multiple of 8, and the weights are 8 times fewer than
    those of a `Conv2D` of equal width.

    Args:
        filters: Number of output channels, 8 times that of feature maps.
        kernel_size: Integer, or a pair of equal ones.
        **kwargs: The other arguments of `P4Conv2D`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: see `P4Conv2D`.

    Reference:
        Cohen, Welling, "Group Equivariant Convolutional Networks", 2016.

    Example:

    >>> layer = P4MConv2D(64, 3, padding="same")
    >>> layer.build((None, 28, 28, 64))
    >>> layer.count_params(), layer.expand().count_params()
    (4616, 36928)
    """

    group = "p4m"
