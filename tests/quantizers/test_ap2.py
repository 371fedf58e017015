"""ap2: BNN's approximate power of two."""

import numpy as np
import pytest
from keras import ops

from keras_compress.quantizers import ap2
from tests.gradients import gradient
from tests.quantizers.common import normal


def test_bnn_ap2_of_the_catalogue():
    """log2 0.75 = -0.415 rounds to 0."""
    assert float(ap2(0.75)) == 1


def test_bnn_ap2_is_the_nearest_power_on_the_logarithmic_scale():
    x = normal(2000) * np.exp2(np.linspace(-100, 100, 2000))
    x = x.astype("float32")
    powers = np.exp2(np.arange(-126, 128))
    distance = np.abs(np.log2(np.abs(x.astype("float64")))[:, None] - np.log2(powers))
    expected = np.sign(x) * powers[distance.argmin(axis=1)]
    np.testing.assert_array_equal(ops.convert_to_numpy(ap2(x)), expected)


def test_bnn_ap2_keeps_powers_and_zero_exactly():
    x = np.concatenate([np.exp2(np.arange(-126, 128)), [0]]).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(ap2(x)), x)
    np.testing.assert_array_equal(ops.convert_to_numpy(ap2(-x)), -x)


def test_bnn_ap2_gradient_is_straight_through():
    x, upstream = normal(9), normal(9, seed=1)
    got = gradient(lambda x: ops.sum(ap2(x) * upstream), x)
    np.testing.assert_array_equal(got, upstream)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bnn_ap2_in_half_precision(dtype):
    outputs = ap2(ops.cast([0.3, -6.0], dtype))
    assert ops.dtype(outputs) == dtype
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(outputs, "float32")), [0.25, -8])
