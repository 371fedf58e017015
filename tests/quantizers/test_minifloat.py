"""Minifloat: values and rounding against a table made bit by bit."""

import numpy as np
import pytest

from keras_compress.quantizers import Minifloat
from tests.quantizers.common import normal, values

FORMATS = [(2, 0), (2, 1), (3, 2), (4, 3), (5, 2), (6, 4)]


def table(e, m):
    """All values of the format, from the fields of each code."""
    found = set()
    bias = 2 ** (e - 1) - 1
    for code in range(2 ** (e + m)):
        exponent, mantissa = code >> m, code & (2**m - 1)
        if exponent == 0:
            value = 2.0 ** (1 - bias) * mantissa / 2**m
        else:
            value = 2.0 ** (exponent - bias) * (1 + mantissa / 2**m)
        found |= {value, -value}
    return np.array(sorted(found))


@pytest.mark.parametrize("e,m", FORMATS)
def test_levels_are_those_of_the_fields(e, m):
    q = Minifloat(e, m)
    np.testing.assert_array_equal(q.levels(np.ones(3))[0], table(e, m))
    assert q.largest == table(e, m)[-1] and q.bits == 1 + e + m


@pytest.mark.parametrize("e,m", FORMATS)
def test_rounds_to_the_nearest_value_and_saturates(e, m):
    levels = table(e, m)
    w = normal(400) * np.exp2(np.random.default_rng(1).integers(-8, 9, size=400))
    w = np.concatenate([w, levels, 1.001 * levels, [0.0, 1e30, -1e30, 1e-30]]).astype("float32")
    found = values(Minifloat(e, m), w)
    clipped = np.clip(w.astype("float64"), levels[0], levels[-1])
    nearest = np.abs(clipped[:, None] - levels).min(1)
    assert set(found.tolist()) <= set(levels.astype("float32").tolist())
    np.testing.assert_array_equal(np.abs(found - clipped), nearest)


def test_float16_is_a_minifloat_of_five_and_ten_bits():
    w = normal(1000).astype("float32")
    np.testing.assert_array_equal(values(Minifloat(5, 10), w), w.astype("float16"))


@pytest.mark.parametrize("arguments", [(1, 3), (7, 3), (4, -1), (4, 11), (4.0, 3)])
def test_bits_outside_of_the_format_are_refused(arguments):
    with pytest.raises(ValueError, match="Minifloat: `(exponent|mantissa)` must be an integer"):
        Minifloat(*arguments)
