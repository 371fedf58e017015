"""Optimizers: `kc.optimizers`."""

from keras_compress.optimizers.compress8 import Compress8
from keras_compress.optimizers.fixed_point_updates import FixedPointUpdates
from keras_compress.optimizers.shift_ada_max import ShiftAdaMax

__all__ = ["Compress8", "FixedPointUpdates", "ShiftAdaMax"]
