"""StochasticTernary: ternary connect of "Neural Networks with Few Multiplications"."""

import numpy as np
import pytest
from keras import ops

from keras_compress.quantizers import StochasticTernary
from tests.gradients import gradient
from tests.quantizers.common import normal, values


@pytest.mark.parametrize("inference", ["ternary", "latent"])
def test_mean_of_the_draws_is_the_weight(inference):
    quantizer = StochasticTernary(inference, seed=1)
    for w in (0.3, -0.75):
        draws = values(quantizer, np.full(100_000, w), training=True)
        assert set(draws.tolist()) == {0.0, np.sign(w)}
        assert abs(draws.mean() - w) < 0.01


def test_zero_and_one_are_certain():
    w = np.tile([0.0, 1.0, -1.0, 3.0, -7.0], 2000)
    draws = values(StochasticTernary(seed=1), w, training=True)
    np.testing.assert_array_equal(draws, np.tile([0, 1, -1, 1, -1], 2000))


def test_inference_does_not_draw():
    w = np.clip(normal(1000), -1, 1)
    for training in (None, False):
        rounded = values(StochasticTernary(seed=1), w, training=training)
        np.testing.assert_array_equal(rounded, np.sign(w) * (np.abs(w) > 0.5))


def test_latent_inference_is_the_weight_on_the_int8_grid():
    quantizer, w = StochasticTernary("latent"), np.clip(normal(1000), -1, 1)
    outputs = values(quantizer, w)
    assert np.abs(outputs - w).max() <= 0.5 / 127 + 1e-7
    np.testing.assert_allclose(outputs * 127, np.round(outputs * 127), atol=1e-5)
    np.testing.assert_array_equal(quantizer.encode(w).decode(), outputs)
    assert (quantizer.bits, StochasticTernary().bits) == (8, 2)


def test_kernel_gradient_is_the_one_of_the_drawn_weights_whatever_they_are():
    x, upstream = normal(6, 9), normal(6, 4, seed=1)
    quantizer = StochasticTernary(seed=3)
    w = np.random.default_rng(2).uniform(-1, 1, (9, 4)).astype("float32")
    grad = gradient(lambda w: ops.sum(ops.matmul(x, quantizer(w)) * upstream), w)
    np.testing.assert_allclose(grad, x.T @ upstream, rtol=1e-4, atol=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`inference` must be one of 'ternary', 'latent'"):
        StochasticTernary("mean")
