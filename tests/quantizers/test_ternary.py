"""Ternary: weights of ternary weight networks."""

import numpy as np
import pytest

from keras_compress.quantizers import Ternary
from tests.quantizers.common import normal, values


def test_twn_example_of_the_catalogue():
    codes = Ternary().encode([1.0, -1.0, 0.1, -0.1])
    assert codes.ints.tolist() == [1, -1, 0, 0] and codes.scale == 1
    np.testing.assert_array_equal(values(Ternary(), [1.0, -1.0, 0.1, -0.1]), [1, -1, 0, 0])


def test_twn_statistics_on_a_normal_distribution():
    w = normal(1_000_000)
    codes = Ternary().encode(w)
    kept = np.abs(w)[codes.ints != 0]
    assert abs(kept.min() - 0.557) < 0.005
    assert abs(codes.scale - 1.183) < 0.005
    assert abs(len(kept) / len(w) - 0.576) < 0.003
    assert abs(np.mean((w - codes.decode()) ** 2) - 0.192) < 0.001


def test_twn_error_is_within_one_percent_of_the_best_threshold():
    w = normal(1_000_000)
    ours = np.mean((w - Ternary().encode(w).decode()) ** 2)
    # The optimum over all thresholds: the k largest magnitudes kept, for every k.
    magnitudes = np.sort(np.abs(w).astype("float64"))[::-1]
    gains = np.cumsum(magnitudes) ** 2 / np.arange(1, len(w) + 1)
    best = (np.sum(magnitudes**2) - gains.max()) / len(w)
    assert best <= ours < 1.01 * best


@pytest.mark.parametrize("axis", [None, -1])
def test_twn_scale_is_the_best_one_in_l2_for_its_signs(axis):
    w = normal(3, 3, 4, 5)
    codes = Ternary(axis=axis).encode(w)
    signs, weights = codes.ints.reshape(-1, 5).astype("float64"), w.reshape(-1, 5)
    if axis is None:
        signs, weights = signs.reshape(-1, 1), weights.reshape(-1, 1)
    fitted = [np.linalg.lstsq(s[:, None], c)[0][0] for s, c in zip(signs.T, weights.T, strict=True)]
    np.testing.assert_allclose(np.atleast_1d(codes.scale), fitted, rtol=1e-5)


@pytest.mark.parametrize("axis", [None, -1])
def test_twn_is_idempotent_in_its_signs(axis):
    codes = Ternary(axis=axis).encode(normal(40, 6))
    np.testing.assert_array_equal(Ternary(axis=axis).encode(codes.decode()).ints, codes.ints)


def test_threshold_of_each_filter_is_its_own():
    w = normal(50, 3) * [0.01, 1.0, 100.0]
    together, apart = Ternary().encode(w), Ternary(axis=-1).encode(w)
    assert not together.ints[:, :2].any()
    for channel in range(3):
        alone = Ternary().encode(w[:, channel])
        np.testing.assert_array_equal(apart.ints[:, channel], alone.ints)
        np.testing.assert_allclose(apart.scale[channel], alone.scale, rtol=1e-6)


def test_without_scale_the_levels_are_integers():
    w = 7 * normal(30)
    assert set(values(Ternary(scale=None), w).tolist()) == {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(Ternary(scale=None).levels(w), [[-1, 0, 1]])
    assert Ternary(scale=None).storage_bits((30,)) == 60
    assert Ternary().storage_bits((3, 10)) == 60 + 32
    assert Ternary(axis=-1).storage_bits((3, 10)) == 60 + 320


def test_threshold_is_a_factor_of_the_mean_magnitude():
    w = np.linspace(-1, 1, 101).astype("float32")
    for threshold in (0.0, 0.5, 1.5):
        kept = Ternary(threshold).encode(w).ints != 0
        np.testing.assert_array_equal(kept, np.abs(w) > threshold * np.abs(w).mean())
    # Larger than any weight: nothing is kept, and nothing is NaN.
    np.testing.assert_array_equal(values(Ternary(9.0), w), np.zeros(101))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"threshold": -0.1}, "`threshold` must be a number in"),
        ({"scale": "mean_abs"}, "`scale` must be one of None, 'mean_kept'"),
        ({"axis": 1}, "`axis` must be one of None, -1, 0"),
        ({"ste": "scaled"}, "`ste` must be one of 'identity', 'clip'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ternary(**arguments)
