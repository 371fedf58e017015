"""Pruning: schedules, masks and what they leave behind."""

import importlib
import sys
import types

from keras_compress.budget import Budget
from keras_compress.pruning.dropout import retraining_dropout_rate
from keras_compress.pruning.masks import magnitude_mask, mask_from_scores
from keras_compress.pruning.pruning_mask import PruningMask
from keras_compress.pruning.schedules import (
    ConstantSparsity,
    CosineDecay,
    OneShot,
    PolynomialDecay,
    PruningSchedule,
)
from keras_compress.pruning.strip import strip

__all__ = [
    "Budget",
    "ChannelGraph",
    "ConstantSparsity",
    "CosineDecay",
    "OneShot",
    "ParticleFilter",
    "PolynomialDecay",
    "PruningMask",
    "PruningSchedule",
    "RandomMaskSearch",
    "absorb_pooling",
    "criteria",
    "data_free_prune",
    "energy_aware_prune",
    "fold_batchnorm",
    "greedy_finetune",
    "iterative_prune",
    "lda_prune",
    "magnitude_mask",
    "mask_from_scores",
    "merge_branches",
    "obs_prune",
    "prune_and_finetune",
    "prune_channels",
    "prune_maxout",
    "prune_weights",
    "reconstruct",
    "reduce_and_reuse",
    "register_channel_rule",
    "remove_channels",
    "remove_dead",
    "remove_zero_groups",
    "retraining_dropout_rate",
    "select",
    "sensitivity",
    "strip",
]

_OF_MODELS = {
    "ChannelGraph": "surgery",
    "ParticleFilter": "particle_filter",
    "RandomMaskSearch": "random_mask_search",
    "absorb_pooling": "absorb_pooling",
    "criteria": None,
    "data_free_prune": "data_free_prune",
    "energy_aware_prune": "energy_aware_prune",
    "fold_batchnorm": "fold_batchnorm",
    "greedy_finetune": "greedy_finetune",
    "iterative_prune": "iterative_prune",
    "lda_prune": "lda_prune",
    "merge_branches": "merge_branches",
    "obs_prune": "obs_prune",
    "prune_and_finetune": "prune_and_finetune",
    "prune_channels": "prune_channels",
    "prune_maxout": "prune_maxout",
    "prune_weights": "prune_weights",
    "reconstruct": "reconstruct",
    "reduce_and_reuse": "reduce_and_reuse",
    "register_channel_rule": "surgery",
    "remove_channels": "surgery",
    "remove_dead": "remove_dead",
    "remove_zero_groups": "remove_zero_groups",
    "select": "choice",
    "sensitivity": "sensitivity",
}


def __getattr__(name):
    # On first use: these open model graphs, which need what needs this package.
    if name not in _OF_MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _OF_MODELS[name] is None:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{_OF_MODELS[name]}"), name)
    globals()[name] = value
    return value


class _Package(types.ModuleType):
    def __setattr__(self, name, value):
        # Importing a submodule sets it here, where it would hide the function of the same name.
        if _OF_MODELS.get(name) is None or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
