"""Criteria: how much each weight, filter or channel matters. `kc.pruning.criteria`."""

import functools

from keras_compress import validation
from keras_compress.pruning.criteria.activation_variance import ActivationVariance
from keras_compress.pruning.criteria.apoz import APoZ
from keras_compress.pruning.criteria.correlation import Correlation
from keras_compress.pruning.criteria.criterion import (
    ActivationCriterion,
    Criterion,
    KernelCriterion,
    Scores,
)
from keras_compress.pruning.criteria.data_free import DataFree
from keras_compress.pruning.criteria.entropy import Entropy
from keras_compress.pruning.criteria.inbound_variance import InboundVariance
from keras_compress.pruning.criteria.intra_kernel_strided import IntraKernelStrided
from keras_compress.pruning.criteria.l1_filter import L1Filter
from keras_compress.pruning.criteria.lasso_channel import LassoChannel
from keras_compress.pruning.criteria.lda import LDA
from keras_compress.pruning.criteria.magnitude import Magnitude
from keras_compress.pruning.criteria.optimal_brain_damage import OptimalBrainDamage
from keras_compress.pruning.criteria.optimal_brain_surgeon import OptimalBrainSurgeon
from keras_compress.pruning.criteria.oracle import Oracle
from keras_compress.pruning.criteria.taylor import Taylor
from keras_compress.pruning.criteria.thinet import ThiNet
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion

__all__ = [
    "ActivationCriterion",
    "ActivationVariance",
    "APoZ",
    "Correlation",
    "Criterion",
    "DataFree",
    "Entropy",
    "InboundVariance",
    "IntraKernelStrided",
    "KernelCriterion",
    "L1Filter",
    "LassoChannel",
    "LDA",
    "Magnitude",
    "OptimalBrainDamage",
    "OptimalBrainSurgeon",
    "Oracle",
    "Scores",
    "Taylor",
    "ThiNet",
    "WeightCriterion",
    "get",
]

_NAMES = {
    "activation_variance": ActivationVariance,
    "apoz": APoZ,
    "correlation": Correlation,
    "data_free": DataFree,
    "entropy": Entropy,
    "intra_kernel_strided": IntraKernelStrided,
    "l1": L1Filter,
    "l2": functools.partial(L1Filter, order=2),
    "lasso": LassoChannel,
    "lda": LDA,
    "magnitude": Magnitude,
    "obd": OptimalBrainDamage,
    "obs": OptimalBrainSurgeon,
    "oracle": Oracle,
    "taylor": Taylor,
    "thinet": ThiNet,
}


def get(criterion):
    """A criterion, given as one or by its name."""
    if isinstance(criterion, Criterion):
        return criterion
    return _NAMES[validation.one_of("criterion", criterion, _NAMES)]()
