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
)
from keras_compress.pruning.criteria.entropy import Entropy
from keras_compress.pruning.criteria.inbound_variance import InboundVariance
from keras_compress.pruning.criteria.intra_kernel_strided import IntraKernelStrided
from keras_compress.pruning.criteria.l1_filter import L1Filter
from keras_compress.pruning.criteria.lda import LDA
from keras_compress.pruning.criteria.magnitude import Magnitude
from keras_compress.pruning.criteria.optimal_brain_damage import OptimalBrainDamage
from keras_compress.pruning.criteria.optimal_brain_surgeon import OptimalBrainSurgeon
from keras_compress.pruning.criteria.oracle import Oracle
from keras_compress.pruning.criteria.taylor import Taylor
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion

__all__ = [
    "APoZ",
    "ActivationCriterion",
    "ActivationVariance",
    "Criterion",
    "Entropy",
    "InboundVariance",
    "KernelCriterion",
    "L1Filter",
    "LDA",
    "Oracle",
    "Taylor",
    "Correlation",
    "IntraKernelStrided",
    "Magnitude",
    "OptimalBrainDamage",
    "OptimalBrainSurgeon",
    "WeightCriterion",
    "get",
]

_NAMES = {
    "l1": L1Filter,
    "l2": functools.partial(L1Filter, order=2),
    "activation_variance": ActivationVariance,
    "apoz": APoZ,
    "entropy": Entropy,
    "lda": LDA,
    "oracle": Oracle,
    "taylor": Taylor,
    "obs": OptimalBrainSurgeon,
    "obd": OptimalBrainDamage,
    "magnitude": Magnitude,
    "intra_kernel_strided": IntraKernelStrided,
    "correlation": Correlation,
}


def get(criterion):
    """A criterion, given as one or by its name."""
    if isinstance(criterion, Criterion):
        return criterion
    return _NAMES[validation.one_of("criterion", criterion, _NAMES)]()
