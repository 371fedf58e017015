"""BinaryAttraction: Soulie's penalty, which draws weights to two values."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.regularizers import BinaryAttraction
from tests.gradients import gradient

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_soulie_penalty_is_the_formula(p, scale):
    w = RNG.normal(size=(7, 5)).astype("float32")
    c = np.abs(w).mean() if scale is None else scale
    expected = 0.2 * np.sum(np.abs(np.abs(w) / c - 1) ** p)
    np.testing.assert_allclose(float(BinaryAttraction(0.2, p, scale)(w)), expected, rtol=1e-5)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_soulie_penalty_is_zero_if_and_only_if_all_weights_are_two_values(p, scale):
    penalty = BinaryAttraction(1.0, p, scale)
    w = 0.5 * np.sign(RNG.normal(size=(6, 4))).astype("float32")
    assert float(penalty(w)) == 0
    w[2, 3] *= 1.001
    assert float(penalty(w)) > 0


@pytest.mark.parametrize("p", [1, 2])
def test_soulie_gradient_pulls_half_up_and_one_and_a_half_down(p):
    c = 0.8
    w = np.array([0.5, 1.5, -0.5, -1.5], "float32") * c
    pull = gradient(BinaryAttraction(3.0, p, c), w)
    sizes = np.array([-1, 1, 1, -1]) * (3.0 / c if p == 1 else 2 * 3.0 * 0.5 / c)
    np.testing.assert_allclose(pull, sizes, rtol=1e-5)
    # The scale that follows the weights is a constant in the gradient.
    same = gradient(BinaryAttraction(3.0, p), w)
    np.testing.assert_allclose(same, sizes, rtol=1e-5)


def test_weights_that_are_all_zero_have_a_penalty_and_no_gradient():
    penalty = BinaryAttraction(1.0)
    assert np.isfinite(float(penalty(np.zeros(4, "float32"))))
    np.testing.assert_array_equal(gradient(penalty, np.zeros(4, "float32")), np.zeros(4))


def test_config_round_trip_in_a_layer():
    layer = keras.layers.Dense(3, kernel_regularizer=BinaryAttraction(1e-4, p=2, scale=0.1))
    again = keras.layers.Dense.from_config(layer.get_config()).kernel_regularizer
    assert isinstance(again, BinaryAttraction)
    assert again.get_config() == {"strength": 1e-4, "p": 2, "scale": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1}, r"`strength` must be a number in \[0"),
        ({"strength": 1, "p": 3}, "`p` must be one of 1, 2"),
        ({"strength": 1, "scale": 0}, r"`scale` must be a number in \(0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kc.regularizers.BinaryAttraction(**arguments)


def test_half_precision_is_summed_in_float32():
    w = ops.cast(ops.full((300, 300), 0.3), "float16")
    found = float(BinaryAttraction(1.0, 1, 0.6)(w))
    np.testing.assert_allclose(found, 300 * 300 * 0.5, rtol=1e-3)
