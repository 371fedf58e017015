"""Functions of tensors that Keras has in another form, or not at all: `kc.ops`."""

from keras_compress.ops.mec import (
    im2col_size,
    mec_conv2d,
    mec_conv2d_numpy,
    mec_lower,
    mec_lowered_size,
    mec_matrices,
)

__all__ = [
    "im2col_size",
    "mec_conv2d",
    "mec_conv2d_numpy",
    "mec_lower",
    "mec_lowered_size",
    "mec_matrices",
]
