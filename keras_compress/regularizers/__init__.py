"""Regularizers that make models compressible."""

from keras_compress.regularizers.binary_attraction import BinaryAttraction
from keras_compress.regularizers.density_diversity import DensityDiversity
from keras_compress.regularizers.group_lasso import GroupLasso
from keras_compress.regularizers.soft_weight_sharing import SoftWeightSharing
from keras_compress.regularizers.sparse_group_lasso import SparseGroupLasso

__all__ = [
    "BinaryAttraction",
    "DensityDiversity",
    "GroupLasso",
    "SoftWeightSharing",
    "SparseGroupLasso",
]
