"""Callbacks: everything that acts during `fit`."""

from keras_compress.callbacks.incremental_quantization import IncrementalQuantization
from keras_compress.callbacks.magnitude_pruning import MagnitudePruning
from keras_compress.callbacks.proximal_group_lasso import ProximalGroupLasso

__all__ = ["IncrementalQuantization", "MagnitudePruning", "ProximalGroupLasso"]
