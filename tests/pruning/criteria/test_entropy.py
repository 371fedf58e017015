"""`Entropy`: of the histogram of a map's global averages."""

import keras
import numpy as np
import pytest
import scipy.stats

import keras_compress as kc

RNG = np.random.default_rng(0)
Entropy = kc.pruning.criteria.Entropy


def identity(width):
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(width, name="fc")])
    model.set_weights([np.eye(width), np.zeros(width)])
    return model


def test_constant_map_has_entropy_0_and_a_uniform_one_log_m():
    constant = np.full(80, 0.3)
    # Rounding is no spread.
    nearly = constant * (1 + 1e-7 * RNG.normal(size=80))
    uniform = RNG.permutation(np.arange(80) % 8).astype(float)
    x = np.stack([constant, nearly, uniform, np.zeros(80)], 1)
    scores = Entropy(bins=8)(identity(4), data=x)["fc"]
    np.testing.assert_allclose(scores, [0, 0, np.log(8), 0], rtol=1e-12)


def test_equals_scipy_entropy_of_the_histogram_of_pooled_maps():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(5, 3, activation="relu", name="conv"),
            keras.layers.MaxPooling2D(),
        ]
    )
    x = RNG.normal(size=(150, 6, 6, 2)).astype("float32")
    scores = Entropy()(model, data=x, batch_size=40)["conv"]
    pooled = keras.ops.convert_to_numpy(model.layers[0](x)).astype("float64").mean((1, 2))
    for score, values in zip(scores, pooled.T, strict=True):
        counts = np.histogram(values, 100)[0]
        assert abs(score - scipy.stats.entropy(counts)) < 0.03
    # A few values may fall on the other side of an edge: at 10 bins none does.
    few = Entropy(bins=10)(model, data=x)["conv"]
    expected = [scipy.stats.entropy(np.histogram(values, 10)[0]) for values in pooled.T]
    np.testing.assert_allclose(few, expected, atol=1e-6)


def test_bins_must_be_a_positive_integer():
    with pytest.raises(ValueError, match="`bins` must be a positive integer; got bins=0"):
        Entropy(bins=0)
