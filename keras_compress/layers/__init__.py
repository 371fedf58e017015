"""Drop-in compressed layers: `kc.layers`."""

from keras_compress.layers.base import CompressedLayer
from keras_compress.layers.binary_conv2d import BinaryConv2D
from keras_compress.layers.binary_dense import BinaryDense
from keras_compress.layers.block_sparse_dense import BlockSparseDense
from keras_compress.layers.circulant_dense import CirculantDense
from keras_compress.layers.codebook_conv2d import CodebookConv2D
from keras_compress.layers.codebook_dense import CodebookDense
from keras_compress.layers.compressed_conv2d import CompressedConv2D
from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.factorized_conv2d import FactorizedConv2D
from keras_compress.layers.factorized_dense import FactorizedDense
from keras_compress.layers.fake_quant import FakeQuant
from keras_compress.layers.fake_quant_batch_normalization import FakeQuantBatchNormalization
from keras_compress.layers.fake_quant_conv2d import FakeQuantConv2D
from keras_compress.layers.fake_quant_dense import FakeQuantDense
from keras_compress.layers.fake_quant_depthwise_conv2d import FakeQuantDepthwiseConv2D
from keras_compress.layers.hashed_conv2d import HashedConv2D
from keras_compress.layers.hashed_dense import HashedDense
from keras_compress.layers.lazy_dense import LazyDense
from keras_compress.layers.ldr_dense import LDRDense
from keras_compress.layers.maxout_conv2d import MaxoutConv2D
from keras_compress.layers.maxout_dense import MaxoutDense
from keras_compress.layers.quant_conv2d import QuantConv2D
from keras_compress.layers.quant_dense import QuantDense
from keras_compress.layers.quant_depthwise_conv2d import QuantDepthwiseConv2D
from keras_compress.layers.quant_separable_conv2d import QuantSeparableConv2D
from keras_compress.layers.shift_batch_normalization import ShiftBatchNormalization
from keras_compress.layers.structured_conv2d import StructuredConv2D
from keras_compress.layers.toeplitz_like_dense import ToeplitzLikeDense
from keras_compress.layers.tt_conv2d import TTConv2D
from keras_compress.layers.tt_dense import TTDense

FactorizedConv = FactorizedConv2D

__all__ = [
    "BinaryConv2D",
    "BinaryDense",
    "BlockSparseDense",
    "CirculantDense",
    "CodebookConv2D",
    "CodebookDense",
    "CompressedConv2D",
    "CompressedDense",
    "CompressedLayer",
    "FactorizedConv",
    "FactorizedConv2D",
    "FactorizedDense",
    "FakeQuant",
    "FakeQuantBatchNormalization",
    "FakeQuantConv2D",
    "FakeQuantDense",
    "FakeQuantDepthwiseConv2D",
    "HashedConv2D",
    "HashedDense",
    "LDRDense",
    "LazyDense",
    "MaxoutConv2D",
    "MaxoutDense",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "QuantSeparableConv2D",
    "ShiftBatchNormalization",
    "StructuredConv2D",
    "TTConv2D",
    "TTDense",
    "ToeplitzLikeDense",
]
