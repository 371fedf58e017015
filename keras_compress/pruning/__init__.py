"""Pruning: schedules, masks and what they leave behind."""

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
