"""Inference with zeros left out, on CPU: `kc.sparse`."""

from keras_compress.sparse.cost_model import LayerCost, Machine, cost_model, measure_machine
from keras_compress.sparse.direct_sparse_conv2d import DirectSparseConv2D
from keras_compress.sparse.masked_conv2d import masked_conv2d
from keras_compress.sparse.relu_sparse_conv2d import relu_sparse_conv2d
from keras_compress.sparse.sparse_dense import SparseDense
from keras_compress.sparse.sparse_model import SparseModel, compile

__all__ = [
    "DirectSparseConv2D",
    "LayerCost",
    "Machine",
    "SparseDense",
    "SparseModel",
    "compile",
    "cost_model",
    "masked_conv2d",
    "measure_machine",
    "relu_sparse_conv2d",
]
