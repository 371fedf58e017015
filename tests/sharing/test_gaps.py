"""Positions as differences of few bits."""

import numpy as np
import pytest

from keras_compress.sharing.gaps import gaps_of, positions_of


def test_han_gaps_3_and_300_with_8_bits():
    gaps, real = gaps_of([2, 302], bits=8)
    assert (gaps + 1).tolist() == [3, 256, 44]
    assert real.tolist() == [True, False, True]


def test_han_figure_2_differences_1_3_11_with_3_bits():
    # Positions 1, 4, 15 of the figure, counted from 1 there: a filler after a span of 8.
    gaps, real = gaps_of([0, 3, 14], bits=3)
    assert (gaps + 1).tolist() == [1, 3, 8, 3] and real.tolist() == [True, True, False, True]


@pytest.mark.parametrize(("gap", "count"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_a_filler_only_where_a_gap_overflows(gap, count):
    gaps, real = gaps_of([gap - 1], bits=5)
    assert len(gaps) == count and gaps.max() <= 31
    assert real.tolist() == [False] * (count - 1) + [True]


@pytest.mark.parametrize("bits", [1, 4, 5, 8, 12])
def test_positions_come_back(bits):
    rng = np.random.default_rng(bits)
    mask = rng.random(20_000) < 0.01
    gaps, real = gaps_of(np.flatnonzero(mask), bits)
    assert gaps.max() < 2**bits
    positions = positions_of(gaps)
    np.testing.assert_array_equal(positions[real], np.flatnonzero(mask))
    assert np.all(np.diff(positions) > 0) and not mask[positions[~real]].any()


def test_no_positions():
    gaps, real = gaps_of([], bits=5)
    assert gaps.size == real.size == positions_of(gaps).size == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="`positions` must be a list of ascending integers"):
        gaps_of([3, 3], bits=5)
    with pytest.raises(ValueError, match="`positions` must be"):
        gaps_of([-1], bits=5)
    with pytest.raises(ValueError, match="`bits` must be an integer from 1 to 12; got bits=13"):
        gaps_of([1], bits=13)
