"""`LassoChannel`: supports equal those of scikit-learn's coordinate descent."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import keras_compress as kc

RNG = np.random.default_rng(0)
LassoChannel = kc.pruning.criteria.LassoChannel


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers for a test, whichever others run."""
    keras.utils.set_random_seed(0)
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def model_and_data():
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="maker")(inputs)
    x = keras.layers.Conv2D(4, 3, name="reader")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    return model, RNG.normal(size=(6, 6, 6, 2)).astype("float32")


def contributions(model, x):
    """`Z`, an array `(channels, outputs at all positions)`, by the layer itself."""
    reader = model.get_layer("reader")
    maps = keras.ops.convert_to_numpy(model.get_layer("maker")(x))
    given = []
    for channel in range(maps.shape[-1]):
        alone = np.where(np.arange(maps.shape[-1]) == channel, maps, 0)
        given.append(keras.ops.convert_to_numpy(reader(alone) - reader.bias).ravel())
    return np.array(given, "float64")


def test_support_equals_sklearns_at_the_same_penalty():
    model, x = model_and_data()
    scores = LassoChannel(positions=100)(model, data=x)["reader"]
    given = contributions(model, x)
    outputs = given.sum(0)
    largest = np.abs(given @ outputs).max() / len(outputs)
    assert scores.max() == pytest.approx(1.0)
    ranked = np.sort(scores)
    for penalty in (ranked[:-1] + ranked[1:]) / 2:
        lasso = Lasso(penalty * largest, fit_intercept=False, tol=1e-10, max_iter=100000)
        lasso.fit(given.T, outputs)
        np.testing.assert_array_equal(np.abs(lasso.coef_) > 1e-6, scores > penalty)


def test_the_count_is_met_exactly_and_is_the_support():
    model, x = model_and_data()
    criterion = LassoChannel(positions=100)
    scores = criterion(model, data=x)["reader"]
    for count in range(1, 8):
        small = kc.pruning.prune_channels(model, criterion, count, x)
        kernel = keras.ops.convert_to_numpy(model.get_layer("maker").kernel)
        kept = np.sort(np.argsort(scores)[count:])
        np.testing.assert_array_equal(small.get_layer("maker").kernel, kernel[..., kept])


def test_zero_and_repeated_channels_go_first():
    given = RNG.normal(size=(5, 40))
    given[1] = 0
    given[3] = given[0]
    order, costs = LassoChannel().removal(given @ given.T)
    assert order[0] == 1 and order[1] in (0, 3)
    np.testing.assert_array_equal(costs[:2], 0)
    assert (costs[2:] > 0).all()


def test_a_channel_that_comes_back_has_gone_at_its_first_zero():
    given = np.array([[1.0, -2, 3, 3], [-3, -2, -2, -2], [1, -1, 0, -2], [3, 1, 1, -3]])
    outputs = given.sum(0)
    largest = np.abs(given @ outputs).max()

    def coefficient(penalty):
        lasso = Lasso(penalty * largest / 4, fit_intercept=False, tol=1e-12, max_iter=10**6)
        return lasso.fit(given.T, outputs).coef_[3]

    # It is zero in an interval, and not below or above it.
    assert coefficient(0.6) != 0 and coefficient(0.2) == 0 and coefficient(0.05) != 0
    order, costs = LassoChannel().removal(given @ given.T)
    score = costs[list(order).index(3)]
    assert coefficient(0.99 * score) != 0 and coefficient(1.01 * score) == 0
