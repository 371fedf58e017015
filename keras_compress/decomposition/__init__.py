"""Decompositions of trained kernels: `kc.decomposition`."""

from keras_compress.decomposition.cp import CPFactors
from keras_compress.decomposition.decompose import FORMS, decompose
from keras_compress.decomposition.displacement import (
    displacement,
    displacement_matvec,
    displacement_to_matrix,
    fit_displacement,
    stein_to_matrix,
)
from keras_compress.decomposition.evbmf import EVBMFResult, evbmf
from keras_compress.decomposition.factors import Factors
from keras_compress.decomposition.ranks import EVBMF, Energy, RankPolicy
from keras_compress.decomposition.spatial import SpatialFactors
from keras_compress.decomposition.svd import SVDFactors
from keras_compress.decomposition.tensor_train import (
    balanced_modes,
    contraction_order,
    tt_svd,
    tt_to_matrix,
)
from keras_compress.decomposition.tucker import TuckerFactors

__all__ = [
    "CPFactors",
    "EVBMF",
    "EVBMFResult",
    "Energy",
    "FORMS",
    "Factors",
    "RankPolicy",
    "SVDFactors",
    "SpatialFactors",
    "TuckerFactors",
    "balanced_modes",
    "contraction_order",
    "decompose",
    "displacement",
    "displacement_matvec",
    "displacement_to_matrix",
    "evbmf",
    "fit_displacement",
    "stein_to_matrix",
    "tt_svd",
    "tt_to_matrix",
]
