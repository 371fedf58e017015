"""The quantizer interface: straight-through gradients, codes, get and serialize."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress import quantizers
from keras_compress.quantizers import Codes, Quantizer, Sign
from tests.gradients import gradient


class Halves(Quantizer):
    """Rounds to multiples of one half, in [-1, 1]."""

    bits = 3

    def quantize(self, w, training=None):
        return ops.clip(ops.round(w * 2) / 2, -1, 1)


POINTS = np.array([-3.0, -1.0001, -1.0, -0.3, 0.0, 0.7, 1.0, 1.0001, 3.0], "float32")


@pytest.mark.parametrize(
    "ste,expected",
    [("identity", np.ones(9)), ("clip", [0, 0, 1, 1, 1, 1, 1, 0, 0])],
)
def test_straight_through_gradient(ste, expected):
    upstream = np.linspace(-2, 2, 9).astype("float32")
    quantizer = Halves(ste=ste)
    grad = gradient(lambda w: ops.sum(quantizer(w) * upstream), POINTS)
    np.testing.assert_array_equal(grad, upstream * np.asarray(expected, "float32"))


@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_forward_is_the_quantised_value_bit_for_bit(ste):
    w = np.random.default_rng(0).normal(size=10_000).astype("float32")
    quantised = ops.convert_to_numpy(Halves(ste=ste)(w))
    assert set(np.unique(quantised).tolist()) == {-1.0, -0.5, 0.0, 0.5, 1.0}


@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_a_diverged_value_is_not_hidden(ste):
    outputs = ops.convert_to_numpy(Sign(ste=ste)(np.array([np.nan, 1.0], "float32")))
    assert np.isnan(outputs[0]) and outputs[1] == 1


def test_clip_stays_finite_on_infinite_inputs():
    w = np.array([np.inf, -np.inf], "float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(Sign()(w)), [1, -1])
    np.testing.assert_array_equal(gradient(lambda w: ops.sum(Sign()(w)), w), [0, 0])


def test_decode_of_a_grid_and_of_a_codebook():
    ints = np.array([[0, 1], [2, 1]], "int8")
    decode = Quantizer().decode
    grid = decode(Codes(ints, np.array([0.5, 2.0], "float32"), axis=1))
    np.testing.assert_array_equal(grid, [[0, 2], [1, 2]])
    rows = decode(Codes(ints, np.array([0.5, 2.0], "float32"), axis=0))
    np.testing.assert_array_equal(rows, [[0, 0.5], [4, 2]])
    book = decode(Codes(ints, np.float32(2.0), values=np.array([5, 7, 9], "float32")))
    np.testing.assert_array_equal(book, [[10, 14], [18, 14]])


@pytest.mark.parametrize("identifier", ["sign", "Sign", Sign, Sign()])
def test_get_takes_names_classes_and_objects(identifier):
    found = quantizers.get(identifier)
    assert isinstance(found, Sign)
    assert found.get_config() == Sign().get_config()


def test_get_takes_none_and_configurations():
    assert quantizers.get(None) is None
    assert quantizers.serialize(None) is None
    sign = Sign("mean_abs", stochastic=True, ste="scaled", seed=3)
    again = quantizers.get(quantizers.serialize(sign))
    assert type(again) is Sign and again.get_config() == sign.get_config()
    assert again.get_config() == {
        "scale": "mean_abs",
        "stochastic": True,
        "ste": "scaled",
        "seed": 3,
    }


def test_get_takes_a_registered_quantizer_of_the_user():
    cls = keras.saving.register_keras_serializable(package="tests")(Halves)
    assert type(quantizers.get("tests>Halves")) is cls
    assert type(quantizers.deserialize(quantizers.serialize(cls()))) is cls


@pytest.mark.parametrize("identifier", ["sing", 3, np.sign, keras.layers.Dense(2).get_config()])
def test_get_refuses_what_is_no_quantizer(identifier):
    with pytest.raises((ValueError, TypeError)):
        quantizers.get(identifier)
    with pytest.raises(ValueError, match="Did you mean 'sign'"):
        quantizers.get("sing")


def test_unknown_gradient_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="`ste` must be one of 'identity', 'clip', 'scaled'"):
        Sign(ste="hard")
