"""Powers of two, exactly."""

import numpy as np
from keras import ops

LOWEST, HIGHEST = -126, 127
# Exact, which `2 ** x` of a compiled graph need not be.
_POWERS = np.exp2(np.arange(LOWEST, HIGHEST + 1)).astype("float32")


def exact_power(exponent):
    """Returns `2 ** exponent` of a tensor of whole floats, clipped to float32's normal range."""
    index = ops.cast(ops.clip(exponent, LOWEST, HIGHEST), "int32")
    return ops.take(_POWERS, ops.subtract(index, LOWEST))
