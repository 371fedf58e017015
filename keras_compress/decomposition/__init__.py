"""Decompositions of trained kernels: `kc.decomposition`."""

import importlib
import sys
import types

from keras_compress.budget import Budget
from keras_compress.decomposition.bicluster import BiclusterFactors
from keras_compress.decomposition.cp import CPFactors
from keras_compress.decomposition.decompose import FORMS, decompose
from keras_compress.decomposition.depthwise import DepthwiseFactors
from keras_compress.decomposition.depthwise_separable import DepthwiseSeparableFactors
from keras_compress.decomposition.displacement import (
    displacement,
    displacement_matvec,
    displacement_to_matrix,
    fit_displacement,
    stein_to_matrix,
)
from keras_compress.decomposition.evbmf import EVBMFResult, evbmf
from keras_compress.decomposition.factors import Factors
from keras_compress.decomposition.kernel_ridge import KernelRidgeFactors
from keras_compress.decomposition.monochromatic import MonochromaticFactors
from keras_compress.decomposition.ranks import EVBMF, Energy, RankPolicy
from keras_compress.decomposition.separable_basis import SeparableBasisFactors
from keras_compress.decomposition.sparse_basis import SparseBasisFactors
from keras_compress.decomposition.spatial import SpatialFactors
from keras_compress.decomposition.spatial_channel import SpatialChannelFactors
from keras_compress.decomposition.structured import project_s4, s4_patterns
from keras_compress.decomposition.svd import SVDFactors
from keras_compress.decomposition.tensor_train import (
    balanced_modes,
    contraction_order,
    tt_svd,
    tt_to_matrix,
)
from keras_compress.decomposition.ternary import TernaryFactors
from keras_compress.decomposition.tucker import TuckerFactors

__all__ = [
    "BiclusterFactors",
    "Budget",
    "CPFactors",
    "DepthwiseFactors",
    "DepthwiseSeparableFactors",
    "EVBMF",
    "EVBMFResult",
    "Energy",
    "FORMS",
    "Factors",
    "KernelRidgeFactors",
    "MonochromaticFactors",
    "RankPolicy",
    "SVDFactors",
    "SeparableBasisFactors",
    "SparseBasisFactors",
    "SpatialChannelFactors",
    "SpatialFactors",
    "TernaryFactors",
    "TuckerFactors",
    "balanced_modes",
    "contraction_order",
    "decompose",
    "displacement",
    "displacement_matvec",
    "displacement_to_matrix",
    "evbmf",
    "factorize",
    "fit_displacement",
    "project_s4",
    "s4_patterns",
    "stein_to_matrix",
    "tt_svd",
    "tt_to_matrix",
]


_OF_MODELS = {"factorize": "factorize"}


def __getattr__(name):
    # On first use: these need the layers, which need the algebra here.
    if name not in _OF_MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_OF_MODELS[name]}"), name)
    globals()[name] = value
    return value


class _Package(types.ModuleType):
    def __setattr__(self, name, value):
        # Importing a submodule sets it here, where it would hide the function of the same name.
        if name not in _OF_MODELS or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
