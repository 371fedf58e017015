"""Regularizers that make models compressible."""

from keras_compress.regularizers.group_lasso import GroupLasso

__all__ = ["GroupLasso"]
