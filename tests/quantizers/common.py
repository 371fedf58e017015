"""What the tests of several quantizers share."""

import numpy as np
from keras import ops


def values(quantizer, w, **kwargs):
    """The quantised tensor as a numpy array."""
    return ops.convert_to_numpy(quantizer(np.asarray(w, "float32"), **kwargs))


def normal(*shape, seed=0):
    """float32 samples of N(0, 1)."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")
