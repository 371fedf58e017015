"""What a model costs: `kc.profile`."""

from keras_compress.profile.associative import AssociativeAdds, associative_adds
from keras_compress.profile.compare import Comparison, Row, compare
from keras_compress.profile.macs import layer_calls, macs
from keras_compress.profile.storage import storage_bits

__all__ = [
    "AssociativeAdds",
    "Comparison",
    "Row",
    "associative_adds",
    "compare",
    "layer_calls",
    "macs",
    "storage_bits",
]
