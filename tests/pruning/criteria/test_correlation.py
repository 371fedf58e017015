"""`Correlation` against numpy.corrcoef."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
Correlation = kc.pruning.criteria.Correlation


def expected_scores(inputs, outputs):
    together = np.corrcoef(inputs, outputs, rowvar=False)
    return np.abs(together[: inputs.shape[1], inputs.shape[1] :])


def test_scores_of_a_dense_layer_equal_corrcoef():
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4, activation="leaky_relu", name="fc")]
    )
    x = RNG.normal(size=(70, 6)) + [0, 0, 5, 30, 0, 0]
    score = Correlation()(model, data=x, batch_size=16)["fc/kernel"]
    np.testing.assert_allclose(score, expected_scores(x, model.predict(x, verbose=0)), atol=1e-4)


def test_neurons_are_those_after_batch_normalization_and_activation():
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    model = keras.Sequential([keras.Input((6,)), *layers])
    x = RNG.normal(size=(50, 6))
    (score,) = Correlation()(model, data=x).values()
    np.testing.assert_allclose(score, expected_scores(x, model.predict(x, verbose=0)), atol=1e-4)


def test_scale_and_shift_of_inputs_change_nothing():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="fc")])
    x = RNG.normal(size=(60, 5))
    score = Correlation()(model, data=x)["fc/kernel"]
    scale = np.array([0.1, 2, 5, 1, 3])
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    model.layers[0].kernel.assign(kernel / scale[:, None])
    np.testing.assert_allclose(
        Correlation()(model, data=x * scale + 1)["fc/kernel"], score, atol=1e-4
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_has_the_mean_over_positions(groups):
    conv = keras.layers.Conv2D(4, 2, strides=2, groups=groups, activation="tanh", name="conv")
    model = keras.Sequential([keras.Input((4, 5, 2)), conv])
    x = RNG.normal(size=(30, 4, 5, 2))
    score = Correlation(positions=None)(model, data=x, batch_size=7)["conv/kernel"]
    y = model.predict(x, verbose=0)
    expected = np.zeros((2, 2, 2 // groups, 4))
    for h, w, i, j in np.ndindex(expected.shape):
        channel = i + (j // (4 // groups)) * (2 // groups)
        found = [
            np.corrcoef(x[:, 2 * r + h, 2 * c + w, channel], y[:, r, c, j])[0, 1]
            for r in range(2)
            for c in range(2)
        ]
        expected[h, w, i, j] = np.abs(found).mean()
    np.testing.assert_allclose(score, expected, atol=1e-4)
    # A part of the positions is a part of the mean.
    part = Correlation(positions=1)(model, data=x)["conv/kernel"]
    assert np.abs(part - expected).max() > 1e-3


def test_a_neuron_that_never_changes_correlates_with_nothing():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, activation="relu", name="fc")]
    )
    model.layers[0].bias.assign([-1000.0, 0.0])
    x = RNG.normal(size=(20, 3))
    x[:, 1] = 0.1
    score = Correlation()(model, data=x)["fc/kernel"]
    assert (score[:, 0] == 0).all() and score[1, 1] == 0 and score[0, 1] > 0
