"""Drop-in compressed layers: `kc.layers`."""

from keras_compress.layers.base import CompressedLayer
from keras_compress.layers.compressed_conv2d import CompressedConv2D
from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.tt_dense import TTDense

__all__ = [
    "CompressedConv2D",
    "CompressedDense",
    "CompressedLayer",
    "TTDense",
]
