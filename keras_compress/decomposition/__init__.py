"""Decompositions of trained kernels: `kc.decomposition`."""

from keras_compress.decomposition.tensor_train import (
    balanced_modes,
    contraction_order,
    tt_svd,
    tt_to_matrix,
)

__all__ = [
    "balanced_modes",
    "contraction_order",
    "tt_svd",
    "tt_to_matrix",
]
