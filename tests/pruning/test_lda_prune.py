"""`lda_prune`: discriminating maps, what they depend on, and a Bayes classifier."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import keras_compress as kc

RNG = np.random.default_rng(0)
lda_prune = kc.pruning.lda_prune


def planted():
    """Inputs of which channel 0 tells the classes, and a net that carries it in few filters."""
    labels = np.arange(120) % 3
    x = RNG.normal(size=(120, 6, 6, 2)).astype("float32")
    x[..., 0] += 2.0 * labels[:, None, None]
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 1, activation="relu", name="first"),
            keras.layers.Conv2D(4, 1, activation="relu", name="last"),
            keras.layers.Flatten(),
            keras.layers.Dense(20, activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    # Filters 1 and 3 of `first` carry channel 0, the others noise; so do 0 and 2 of `last`.
    first, last = np.zeros((1, 1, 2, 4)), np.zeros((1, 1, 4, 4))
    first[0, 0, 0, [1, 3]] = 1, 0.7
    first[0, 0, 1, [0, 2]] = 1, 2
    last[0, 0, [1, 3], [0, 2]] = 1, 1
    last[0, 0, [0, 2], [1, 3]] = 3, 3
    model.get_layer("first").set_weights([first, np.zeros(4)])
    model.get_layer("last").set_weights([last, np.zeros(4)])
    return model, x, labels


def test_what_discriminates_stays_back_to_the_first_layer():
    model, x, labels = planted()
    before = model.get_weights()
    small = lda_prune(model, (x, labels), keep=2)
    assert [layer.name for layer in small.layers[1:]] == [
        "first",
        "last",
        "lda_pooling",
        "lda_classifier",
    ]
    kernel = keras.ops.convert_to_numpy(small.get_layer("first").kernel)[0, 0]
    np.testing.assert_allclose(kernel, [[1, 0.7], [0, 0]], rtol=1e-6)
    kernel = keras.ops.convert_to_numpy(small.get_layer("last").kernel)[0, 0]
    np.testing.assert_allclose(kernel, np.eye(2))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_classifier_gives_the_bayes_posterior_of_the_kept_maps():
    model, x, labels = planted()
    small = lda_prune(model, (x, keras.utils.to_categorical(labels)), keep=2, batch_size=32)
    pooled = keras.Model(small.inputs, small.layers[-2].output).predict(x, verbose=0)
    oracle = LinearDiscriminantAnalysis().fit(pooled, labels)
    np.testing.assert_allclose(small.predict(x, verbose=0), oracle.predict_proba(pooled), atol=1e-4)


@pytest.mark.parametrize("activation", [None, "sigmoid", "softmax"])
def test_two_classes(activation):
    _, x, labels = planted()
    x, labels = x[labels < 2], labels[labels < 2]
    units = 2 if activation == "softmax" else 1
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(units, activation=activation),
        ]
    )
    small = lda_prune(model, (x, labels), keep=0.5)
    pooled = keras.Model(small.inputs, small.layers[-2].output).predict(x, verbose=0)
    oracle = LinearDiscriminantAnalysis().fit(pooled, labels)
    expected = {
        None: lambda: oracle.decision_function(pooled)[:, None],
        "sigmoid": lambda: oracle.predict_proba(pooled)[:, 1:],
        "softmax": lambda: oracle.predict_proba(pooled),
    }[activation]()
    np.testing.assert_allclose(small.predict(x, verbose=0), expected, atol=1e-3)


def test_a_trained_residual_net_stays_accurate_in_a_nested_model(tmp_path):
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
    keras.utils.set_random_seed(0)
    inner_inputs = keras.Input((8, 8, 1))
    stem = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="conv")(inner_inputs)
    y = keras.layers.SeparableConv2D(16, 3, padding="same", activation="relu")(stem)
    inner = keras.Model(inner_inputs, keras.layers.Add()([stem, y]), name="inner")
    inputs = keras.Input((8, 8, 1))
    y = keras.layers.MaxPooling2D()(inner(inputs))
    y = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv")(y)
    y = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(y))
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(y))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, labels, batch_size=64, epochs=6, verbose=0)
    small = lda_prune(model, (x, labels), keep=16, earlier=0.75)
    assert small.get_layer("inner_conv").filters == 12
    assert small.count_params() < 0.1 * model.count_params()
    assert small.evaluate(x, labels, verbose=0)[1] > 0.85
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), small.predict(x, verbose=0), atol=1e-6)


def test_bad_input_is_refused():
    model, x, labels = planted()
    with pytest.raises(ValueError, match="the model has 3 classes, .* class numbers .0, 1."):
        lda_prune(model, (x[labels < 2], labels[labels < 2]), keep=2)
    with pytest.raises(ValueError, match="this needs targets"):
        lda_prune(model, x, keep=2)
    with pytest.raises(ValueError, match="`keep` must be an integer from 1 to 4; got keep=5"):
        lda_prune(model, (x, labels), keep=5)
    with pytest.raises(ValueError, match="must have one output of the shape"):
        lda_prune(keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Conv2D(1, 1)]), x, 1)
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="no convolution; name the layer"):
        lda_prune(dense, (x[:, 0, 0], labels), 1)
