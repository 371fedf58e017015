"""What a model costs: `kc.profile`."""

from keras_compress.profile.activation_sparsity import (
    ActivationSparsity,
    LayerZeros,
    activation_sparsity,
)
from keras_compress.profile.associative import AssociativeAdds, associative_adds
from keras_compress.profile.compare import Comparison, Row, compare
from keras_compress.profile.energy import Energy, Hierarchy, LayerEnergy, energy
from keras_compress.profile.latency_table import LatencyTable, latency_table
from keras_compress.profile.macs import layer_calls, macs
from keras_compress.profile.storage import storage_bits

__all__ = [
    "ActivationSparsity",
    "AssociativeAdds",
    "Comparison",
    "Energy",
    "Hierarchy",
    "LatencyTable",
    "LayerEnergy",
    "LayerZeros",
    "Row",
    "activation_sparsity",
    "associative_adds",
    "compare",
    "energy",
    "latency_table",
    "layer_calls",
    "macs",
    "storage_bits",
]
