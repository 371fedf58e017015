"""Pruning: schedules, masks and what they leave behind."""

import importlib

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
    "ConstantSparsity",
    "CosineDecay",
    "OneShot",
    "PolynomialDecay",
    "PruningMask",
    "PruningSchedule",
    "magnitude_mask",
    "mask_from_scores",
    "retraining_dropout_rate",
    "strip",
]

_OF_GRAPHS = ("ChannelGraph", "register_channel_rule", "remove_channels")


def __getattr__(name):
    # On first use: these open model graphs, which need what needs this package.
    if name in _OF_GRAPHS:
        return getattr(importlib.import_module(f"{__name__}.surgery"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
