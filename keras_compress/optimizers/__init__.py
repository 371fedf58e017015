"""Optimizers: `kc.optimizers`."""

from keras_compress.optimizers.shift_ada_max import ShiftAdaMax

__all__ = ["ShiftAdaMax"]
