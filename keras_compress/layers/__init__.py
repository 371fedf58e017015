"""Drop-in compressed layers: `kc.layers`."""

from keras_compress.layers.base import CompressedLayer
from keras_compress.layers.binary_conv2d import BinaryConv2D
from keras_compress.layers.binary_dense import BinaryDense
from keras_compress.layers.block import Block
from keras_compress.layers.block_sparse_dense import BlockSparseDense
from keras_compress.layers.channel_shuffle import ChannelShuffle
from keras_compress.layers.circulant_dense import CirculantDense
from keras_compress.layers.codebook_conv2d import CodebookConv2D
from keras_compress.layers.codebook_dense import CodebookDense
from keras_compress.layers.compact_lstm import CompactLSTM
from keras_compress.layers.compact_lstm_cell import CompactLSTMCell
from keras_compress.layers.compressed_conv2d import CompressedConv2D
from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.dense_block import DenseBlock
from keras_compress.layers.depthwise_separable_conv2d import DepthwiseSeparableConv2D
from keras_compress.layers.factorized_conv2d import FactorizedConv2D
from keras_compress.layers.factorized_dense import FactorizedDense
from keras_compress.layers.fake_quant import FakeQuant
from keras_compress.layers.fake_quant_batch_normalization import FakeQuantBatchNormalization
from keras_compress.layers.fake_quant_conv2d import FakeQuantConv2D
from keras_compress.layers.fake_quant_dense import FakeQuantDense
from keras_compress.layers.fake_quant_depthwise_conv2d import FakeQuantDepthwiseConv2D
from keras_compress.layers.fire_module import FireModule
from keras_compress.layers.group_batch_normalization import GroupBatchNormalization
from keras_compress.layers.group_pool import GroupPool
from keras_compress.layers.hashed_conv2d import HashedConv2D
from keras_compress.layers.hashed_dense import HashedDense
from keras_compress.layers.highway_conv2d import HighwayConv2D
from keras_compress.layers.highway_dense import HighwayDense
from keras_compress.layers.lazy_dense import LazyDense
from keras_compress.layers.lccl_conv2d import LCCLConv2D
from keras_compress.layers.ldr_dense import LDRDense
from keras_compress.layers.maxout_conv2d import MaxoutConv2D
from keras_compress.layers.maxout_dense import MaxoutDense
from keras_compress.layers.mec_conv2d import MECConv2D
from keras_compress.layers.p4_conv2d import P4Conv2D
from keras_compress.layers.p4m_conv2d import P4MConv2D
from keras_compress.layers.predicted_dense import PredictedDense
from keras_compress.layers.quant_conv2d import QuantConv2D
from keras_compress.layers.quant_dense import QuantDense
from keras_compress.layers.quant_depthwise_conv2d import QuantDepthwiseConv2D
from keras_compress.layers.quant_separable_conv2d import QuantSeparableConv2D
from keras_compress.layers.rank_constrained_dense import RankConstrainedDense
from keras_compress.layers.residual_block import ResidualBlock
from keras_compress.layers.shift_batch_normalization import ShiftBatchNormalization
from keras_compress.layers.shuffle_unit import ShuffleUnit
from keras_compress.layers.sparse_basis_conv2d import SparseBasisConv2D
from keras_compress.layers.structured_conv2d import StructuredConv2D
from keras_compress.layers.tensor_regression import TensorRegression
from keras_compress.layers.ternary_factorized_conv2d import TernaryFactorizedConv2D
from keras_compress.layers.ternary_factorized_dense import TernaryFactorizedDense
from keras_compress.layers.toeplitz_like_dense import ToeplitzLikeDense
from keras_compress.layers.tt_conv2d import TTConv2D
from keras_compress.layers.tt_dense import TTDense

FactorizedConv = FactorizedConv2D

__all__ = [
    "BinaryConv2D",
    "BinaryDense",
    "Block",
    "BlockSparseDense",
    "ChannelShuffle",
    "CirculantDense",
    "CodebookConv2D",
    "CodebookDense",
    "CompactLSTM",
    "CompactLSTMCell",
    "CompressedConv2D",
    "CompressedDense",
    "CompressedLayer",
    "DenseBlock",
    "DepthwiseSeparableConv2D",
    "FactorizedConv",
    "FactorizedConv2D",
    "FactorizedDense",
    "FakeQuant",
    "FakeQuantBatchNormalization",
    "FakeQuantConv2D",
    "FakeQuantDense",
    "FakeQuantDepthwiseConv2D",
    "FireModule",
    "GroupBatchNormalization",
    "GroupPool",
    "HashedConv2D",
    "HashedDense",
    "HighwayConv2D",
    "HighwayDense",
    "LCCLConv2D",
    "LDRDense",
    "LazyDense",
    "MECConv2D",
    "MaxoutConv2D",
    "MaxoutDense",
    "P4Conv2D",
    "P4MConv2D",
    "PredictedDense",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "QuantSeparableConv2D",
    "RankConstrainedDense",
    "ResidualBlock",
    "ShiftBatchNormalization",
    "ShuffleUnit",
    "SparseBasisConv2D",
    "StructuredConv2D",
    "TTConv2D",
    "TTDense",
    "TensorRegression",
    "TernaryFactorizedConv2D",
    "TernaryFactorizedDense",
    "ToeplitzLikeDense",
]
