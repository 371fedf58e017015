"""DynamicTree8: Dettmers's 8-bit data type."""

import numpy as np

from keras_compress.quantizers import DynamicTree8, Uniform
from tests.quantizers.common import normal, values


def test_dettmers_table_has_256_values_of_which_127_are_negative():
    levels = DynamicTree8().levels([1.0])[0]
    assert len(np.unique(levels)) == 256
    assert (levels < 0).sum() == 127 and levels.max() == 1 and 0 in levels


def test_dettmers_table_is_the_tree_of_bits():
    """Every code of sign, zeros, 1 and fraction, read bit by bit."""
    found = {0.0, 1.0}
    for code in range(128):
        bits = f"{code:07b}"
        if "1" not in bits:
            continue
        zeros, fraction = bits.split("1", 1)
        low, high = 0.1, 1.0
        for bit in fraction:
            middle = (low + high) / 2
            low, high = (middle, high) if bit == "1" else (low, middle)
        value = (low + high) / 2 * 10.0 ** -len(zeros)
        found |= {value, -value}
    np.testing.assert_allclose(DynamicTree8().levels([1.0])[0], sorted(found), rtol=1e-5)


def test_dettmers_codes_are_the_nearest_values():
    w = normal(5000)
    largest = np.abs(w).max()
    table = DynamicTree8().levels([1.0])[0].astype("float64")
    distances = np.abs((w / largest).astype("float64")[:, None] - table)
    codes = DynamicTree8().encode(w)
    chosen = distances[np.arange(5000), codes.ints]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-7)
    np.testing.assert_allclose(codes.scale, largest)


def test_dettmers_encode_is_idempotent():
    w = normal(5000)
    w[np.abs(w).argmax()] = np.abs(w).max()
    codes = DynamicTree8().encode(w)
    np.testing.assert_array_equal(DynamicTree8().encode(codes.decode()).ints, codes.ints)
    np.testing.assert_array_equal(values(DynamicTree8(), w), codes.decode())


def test_dettmers_relative_error_of_large_values():
    w = np.linspace(0.1, 1, 10_001)
    assert (np.abs(values(DynamicTree8(), w) - w) / w).max() <= 0.062


def test_dettmers_small_values_keep_their_relative_precision_at_twice_the_squared_error():
    w = normal(20_000)
    w = np.abs(w / np.abs(w).max()) * np.sign(w)
    tree, linear = values(DynamicTree8(), w), values(Uniform(8, axis=None), w)
    small = (np.abs(w) < 1e-2) & (w != 0)

    def relative(q):
        return np.mean(np.abs(q - w)[small] / np.abs(w)[small])

    assert relative(tree) < 0.045 and relative(linear) > 0.4
    assert 1.5 < np.sum((tree - w) ** 2) / np.sum((linear - w) ** 2) < 2.5


def test_dettmers_bytes_are_one_a_value_and_four_for_the_maximum():
    assert DynamicTree8().storage_bits((100, 10)) == 8 * (1000 + 4)


def test_zeros_stay_zero():
    np.testing.assert_array_equal(values(DynamicTree8(), np.zeros(9)), np.zeros(9))
