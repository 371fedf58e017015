"""`DensityDiversity` against the double sum over pairs."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.gradients import gradient

RNG = np.random.default_rng(0)
DensityDiversity = kc.regularizers.DensityDiversity


def double_sum(weights):
    flat = weights.ravel().astype("float64")
    return np.abs(flat[:, None] - flat[None, :]).sum()


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_penalty_equals_the_double_sum_over_pairs(p):
    weights = RNG.normal(size=(3, 4, 5)).astype("float32")
    weights[0] = weights[1]  # ties
    penalty = DensityDiversity(density=0.3, diversity=0.02, p=p)
    expected = 0.3 * (np.abs(weights) ** p).sum() + 0.02 * double_sum(weights)
    np.testing.assert_allclose(float(penalty(weights)), expected, rtol=1e-5)


def test_gradient_is_that_of_the_sorting_formula():
    weights = RNG.permutation(np.linspace(-2, 3, 24)).reshape(4, 6).astype("float32")
    found = gradient(DensityDiversity(density=0.0, diversity=1.0), weights)
    ranks = np.argsort(np.argsort(weights.ravel())).reshape(4, 6) + 1
    # Twice, as each pair is there in both orders.
    np.testing.assert_allclose(found, 2.0 * (2 * ranks - 24 - 1), rtol=1e-6)
    # And what finite differences of the double sum give.
    moved = weights.astype("float64")
    moved[1, 2] += 1e-4
    slope = (double_sum(moved) - double_sum(weights)) / 1e-4
    np.testing.assert_allclose(found[1, 2], slope, rtol=1e-3)


def test_density_has_the_gradient_of_its_power():
    weights = RNG.normal(size=(4, 6)).astype("float32")
    found = gradient(DensityDiversity(density=2.0, diversity=0.0, p=1.5), weights)
    expected = 2.0 * 1.5 * np.sqrt(np.abs(weights)) * np.sign(weights)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_penalties_are_zero_just_where_they_should_be():
    equal, zero, mixed = np.full((3, 3), 0.7), np.zeros((3, 3)), np.eye(3)
    diversity = DensityDiversity(density=0.0, diversity=1.0)
    density = DensityDiversity(density=1.0, diversity=0.0)
    np.testing.assert_allclose(float(diversity(equal)), 0.0, atol=1e-5)
    assert float(diversity(zero)) == float(density(zero)) == 0.0
    assert float(diversity(mixed)) == 2 * 3 * 6 and float(density(mixed)) == 3
    assert float(density(equal)) > 0


def test_configuration_round_trip_and_errors():
    penalty = DensityDiversity(0.1, 0.2, 1.5)
    again = keras.regularizers.get(keras.regularizers.serialize(penalty))
    assert again.get_config() == penalty.get_config()
    with pytest.raises(ValueError, match="`p` must be a number in"):
        DensityDiversity(p=0.5)
    with pytest.raises(ValueError, match="`diversity`"):
        DensityDiversity(diversity=-1)


def test_training_under_it_brings_weights_together():
    x = RNG.normal(size=(128, 6)).astype("float32")
    y = x @ RNG.choice([-1.0, 0.0, 1.0], size=(6, 4)) + 0.05 * RNG.normal(size=(128, 4))

    def spread(penalty):
        layer = keras.layers.Dense(4, kernel_regularizer=penalty, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((6,)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, epochs=30, verbose=0)
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        return double_sum(kernel)

    assert spread(DensityDiversity(1e-2, 1e-3)) < 0.97 * spread(None)
