"""FixedPoint: Gupta et al.'s limited precision."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.quantizers import FixedPoint
from tests.quantizers.common import normal, values


@pytest.mark.parametrize("word,frac", [(8, 6), (16, 14), (16, 0), (12, 16), (6, -2)])
def test_gupta_nearest_rounding_and_saturation_at_both_ends(word, frac):
    eps = 2.0**-frac
    low, high = -(2.0 ** (word - frac - 1)), 2.0 ** (word - frac - 1) - eps
    w = np.concatenate([normal(1000) * high, [1e9, -1e9, low, high]]).astype("float32")
    expected = np.clip(eps * np.round(w / eps), low, high)
    np.testing.assert_array_equal(values(FixedPoint(word, frac), w), expected)
    assert values(FixedPoint(word, frac), w)[-4:-2].tolist() == [high, low]


def test_gupta_grid_values_are_fixed_points_of_both_roundings():
    grid = np.arange(-32, 32) / 16
    for rounding in ("nearest", "stochastic"):
        outputs = values(FixedPoint(6, 4, rounding, seed=1), np.tile(grid, 100), training=True)
        np.testing.assert_array_equal(outputs, np.tile(grid, 100))


def test_gupta_stochastic_rounding_is_unbiased_where_nearest_loses_everything():
    eps = 2.0**-8
    w = np.full(100_000, 0.3 * eps, "float32")
    draws = values(FixedPoint(16, 8, "stochastic", seed=1), w, training=True)
    assert set(draws.tolist()) == {0.0, eps}
    assert abs(draws.mean() - 0.3 * eps) < 0.01 * eps
    assert not values(FixedPoint(16, 8), w, training=True).any()
    negative = values(FixedPoint(16, 8, "stochastic", seed=1), -w, training=True)
    assert abs(negative.mean() + 0.3 * eps) < 0.01 * eps


def test_gupta_small_updates_move_a_weight_by_the_right_mean_only_if_rounded_stochastically():
    eps = 2.0**-8
    nearest, stochastic = FixedPoint(16, 8), FixedPoint(16, 8, "stochastic", seed=2)
    stuck, moving = np.zeros(5000), np.zeros(5000)
    for _ in range(100):
        stuck = values(nearest, stuck + 0.1 * eps, training=True)
        moving = values(stochastic, moving + 0.1 * eps, training=True)
    assert not stuck.any()
    assert abs(moving.mean() - 10 * eps) < 0.2 * eps


def test_gupta_stochastic_rounding_trains_with_8_bits_after_the_point_and_nearest_does_not():
    """Every value of a linear model on the grid, updates smaller than half of its step."""
    rng = np.random.default_rng(0)
    x, true = rng.normal(size=(256, 10)), rng.normal(size=10)
    y = x @ true

    def error(quantizer):
        w = np.zeros(10)
        for step in range(600):
            batch = slice(step % 8 * 32, step % 8 * 32 + 32)
            slope = x[batch].T @ (x[batch] @ w - y[batch]) / 32
            w = values(quantizer, w - 1e-3 * slope, training=True).astype("float64")
        return np.mean((x @ w - y) ** 2) / np.mean(y**2)

    assert error(FixedPoint(16, 8)) > 0.5
    assert error(FixedPoint(16, 8, "stochastic", seed=3)) < 0.35


def test_inference_rounds_to_the_nearest():
    w = normal(100)
    outputs = values(FixedPoint(16, 4, "stochastic", seed=1), w, training=False)
    np.testing.assert_array_equal(outputs, values(FixedPoint(16, 4), w))


def test_generator_survives_configuration_and_is_tracked():
    quantizer = FixedPoint(8, 4, "stochastic", seed=5)
    again = FixedPoint.from_config(quantizer.get_config())
    w = normal(100)
    np.testing.assert_array_equal(
        values(quantizer, w, training=True), values(again, w, training=True)
    )
    assert isinstance(quantizer.state[0], keras.random.SeedGenerator)
    assert FixedPoint(8, 4).state == []


def test_words_up_to_24_bits_are_exact():
    w = normal(1000)
    codes = FixedPoint(24, 20).encode(w)
    assert codes.ints.dtype == np.int32
    np.testing.assert_array_equal(
        codes.ints, np.clip(np.round(w.astype("float64") * 2**20), -(2**23), 2**23 - 1)
    )
    np.testing.assert_array_equal(codes.decode(), values(FixedPoint(24, 20), w))
    assert ops.convert_to_numpy(FixedPoint(24, 20)(w)).dtype == np.float32


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"word": 32}, "`word` must be an integer from 2 to 24"),
        ({"frac": 1.5}, "`frac` must be an integer from -32 to 32"),
        ({"rounding": "up"}, "`rounding` must be one of 'nearest', 'stochastic'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FixedPoint(**arguments)
