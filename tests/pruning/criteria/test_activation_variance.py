"""`ActivationVariance`: the variance of a map over samples and positions."""

import keras
import numpy as np

import keras_compress as kc

RNG = np.random.default_rng(0)


def test_variance_equals_numpy_over_all_batches_at_once():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    x = RNG.normal(size=(23, 6, 6, 2)).astype("float32") + 5
    scores = kc.pruning.criteria.ActivationVariance()(model, data=x, batch_size=7)
    tap = keras.Model(model.inputs, [model.layers[2].output, model.outputs[0]])
    maps, logits = tap.predict(x, verbose=0)
    np.testing.assert_allclose(scores["conv"], maps.var((0, 1, 2), dtype="float64"), rtol=1e-5)
    np.testing.assert_allclose(scores["logits"], logits.var(0, dtype="float64"), rtol=1e-5)


def test_a_large_constant_does_not_drown_the_variance():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="fc")])
    model.set_weights([np.ones((1, 1)), np.full(1, 1000.0)])
    x = np.linspace(-1, 1, 64).astype("float32")[:, None]
    scores = kc.pruning.criteria.ActivationVariance()(model, data=x, batch_size=5)["fc"]
    # Single precision near 1000 leaves steps of 6e-5.
    np.testing.assert_allclose(scores, [x.var()], rtol=1e-3)
