"""UniformL2: Hwang and Sung's fixed-point weights."""

import numpy as np
import pytest

from keras_compress.quantizers import UniformL2
from tests.quantizers.common import normal, values


def reference(w, step, levels):
    return np.sign(w) * step * np.minimum(np.floor(np.abs(w) / step + 0.5), (levels - 1) // 2)


@pytest.mark.parametrize("levels", [3, 7, 15, 255])
@pytest.mark.parametrize("kind", ["normal", "uniform", "heavy"])
def test_hwang_fitted_step_is_a_local_minimum_of_the_squared_error(levels, kind):
    w = normal(5000)
    if kind == "uniform":
        w = np.random.default_rng(1).uniform(-3, 3, 5000).astype("float32")
    elif kind == "heavy":
        w = w**3
    step = float(UniformL2(levels).encode(w).scale)
    w = w.astype("float64")

    def error(step):
        return np.sum((w - reference(w, step, levels)) ** 2)

    # Between fine steps weights change their integer, so the neighbourhood is what one fit spans.
    nearby = step * np.linspace(1 - 0.1 / levels, 1 + 0.1 / levels, 21)
    assert error(step) <= min(map(error, nearby)) * (1 + 1e-4)
    assert error(step) < 0.5 * np.sum(w**2)


@pytest.mark.parametrize("levels", [3, 5, 7, 15, 63])
def test_hwang_error_on_a_normal_distribution_is_that_of_the_best_step(levels):
    """Against a search over all steps on the density itself."""
    x = np.linspace(-8, 8, 200_001)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    steps = np.linspace(0.5, 12, 600) / levels
    best = min(np.sum(density * (x - reference(x, step, levels)) ** 2) for step in steps)
    w = normal(400_000)
    error = np.mean((w - UniformL2(levels).encode(w).decode()) ** 2)
    assert abs(error - best) < 0.02 * best


@pytest.mark.parametrize("levels", [3, 5, 7, 15])
def test_hwang_quantizer_is_idempotent(levels):
    codes = UniformL2(levels).encode(normal(3000))
    again = UniformL2(levels).encode(codes.decode())
    np.testing.assert_array_equal(again.ints, codes.ints)
    np.testing.assert_allclose(again.scale, codes.scale, rtol=1e-5)


@pytest.mark.parametrize("levels", [3, 7])
def test_hwang_rounding_and_saturation(levels):
    w = np.concatenate([normal(5000), [0.0]]).astype("float32")
    step = float(UniformL2(levels).encode(w).scale)
    outputs = values(
        UniformL2(levels, step=step), np.array([0.49, 0.51, -0.51, 100.0, -100.0]) * step
    )
    half = (levels - 1) // 2
    np.testing.assert_allclose(outputs, np.array([0, 1, -1, half, -half]) * step, rtol=1e-6)


def test_fewer_levels_than_bits_hold_and_closer_than_the_largest_magnitude():
    from keras_compress.quantizers import Uniform

    w = normal(2000, 4)
    assert [UniformL2(n).bits for n in (3, 5, 7, 9, 255)] == [2, 3, 3, 4, 8]
    for bits in (2, 3, 4):
        fitted = w - UniformL2(2**bits - 1, axis=-1).encode(w).decode()
        plain = w - Uniform(bits).encode(w).decode()
        assert np.sum(fitted**2) < 0.8 * np.sum(plain**2)


def test_zeros_have_a_step_and_stay_zero():
    np.testing.assert_array_equal(values(UniformL2(), np.zeros((4, 2))), np.zeros((4, 2)))


def test_a_step_that_is_given_takes_the_place_of_the_fitted_one():
    w = normal(500, 4)
    codes = UniformL2(7, step=0.3).encode(w)
    np.testing.assert_allclose(codes.decode(), reference(w, np.float32(0.3), 7), atol=1e-6)
    assert codes.scale == np.float32(0.3)


def test_bad_steps_are_named():
    for step in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"UniformL2: `step` must be a number in \(0, inf\)"):
            UniformL2(3, step=step)
    with pytest.raises(ValueError, match="`step` is one for the whole tensor"):
        UniformL2(3, axis=-1, step=0.1)


def test_bad_levels_are_named():
    with pytest.raises(ValueError, match="`levels` must be odd.*Try 3 or 5"):
        UniformL2(4)
    with pytest.raises(ValueError, match="`levels` must be an integer from 3 to 255"):
        UniformL2(1)
