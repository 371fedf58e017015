"""Criteria: how much each weight, filter or channel matters. `kc.pruning.criteria`."""

import functools

from keras_compress import validation
from keras_compress.pruning.criteria.criterion import (
    ActivationCriterion,
    Criterion,
    KernelCriterion,
)
from keras_compress.pruning.criteria.l1_filter import L1Filter

__all__ = [
    "ActivationCriterion",
    "Criterion",
    "KernelCriterion",
    "L1Filter",
    "get",
]

_NAMES = {
    "l1": L1Filter,
    "l2": functools.partial(L1Filter, order=2),
}


def get(criterion):
    """A criterion, given as one or by its name."""
    if isinstance(criterion, Criterion):
        return criterion
    return _NAMES[validation.one_of("criterion", criterion, _NAMES)]()
