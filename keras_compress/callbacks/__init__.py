"""Callbacks: everything that acts during `fit`."""

from keras_compress.callbacks.block_pruning import BlockPruning
from keras_compress.callbacks.channel_pruning import ChannelPruning
from keras_compress.callbacks.dynamic_network_surgery import DynamicNetworkSurgery
from keras_compress.callbacks.guided_sparsity import GuidedSparsity
from keras_compress.callbacks.incremental_quantization import IncrementalQuantization
from keras_compress.callbacks.iterative_hard_thresholding import IterativeHardThresholding
from keras_compress.callbacks.magnitude_pruning import MagnitudePruning
from keras_compress.callbacks.penalty_ramp import PenaltyRamp
from keras_compress.callbacks.proximal_group_lasso import ProximalGroupLasso
from keras_compress.callbacks.soft_weight_sharing import SoftWeightSharing
from keras_compress.callbacks.tie_weights import TieWeights

__all__ = [
    "BlockPruning",
    "ChannelPruning",
    "DynamicNetworkSurgery",
    "GuidedSparsity",
    "IncrementalQuantization",
    "IterativeHardThresholding",
    "MagnitudePruning",
    "PenaltyRamp",
    "ProximalGroupLasso",
    "SoftWeightSharing",
    "TieWeights",
]
