"""`merge_branches`: one convolution in the place of parallel ones."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from tests.pruning.surgery.common import outputs, randomize, samples

merge = kc.pruning.merge_branches


def inception(size=8):
    """1x1 | 1x1 reduce, 3x3 | pool, 1x1 and a head; batch normalisation everywhere."""

    def conv(x, filters, size, name):
        x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    inputs = keras.Input((size, size, 3))
    stem = conv(inputs, 8, 3, "stem")
    large = conv(conv(stem, 6, 1, "reduce"), 8, 3, "large")
    pooled = layers.MaxPooling2D(3, strides=1, padding="same")(stem)
    branches = [conv(stem, 4, 1, "small"), large, conv(pooled, 3, 1, "projection")]
    x = layers.Concatenate(name="join")(branches)
    return randomize(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"length": 7, "strides": 2},
        {"size": (1, 3)},
        {"large": 5, "size": 3, "dilation_rate": 2},
        {"size": 1, "dilation_rate": 2},
        {"size": 3, "use_bias": False},
        {"size": 2, "large": 4},
        {"size": 3, "padding": "valid"},
    ],
)
def test_branches_on_one_input_are_merged_exactly(options):
    options = {"size": 1, "large": 3, "length": 8, "padding": "same", **options}
    size, large, length = (options.pop(key) for key in ("size", "large", "length"))
    inputs = keras.Input((length, length, 3))
    parts = [
        layers.Conv2D(4, size, activation="relu", **options)(inputs),
        layers.Conv2D(6, large, activation="relu", name="large", **options)(inputs),
        layers.Conv2D(2, large, activation="relu", **options)(inputs),
        layers.Conv2D(2, large, activation="tanh", **options)(inputs),
    ]
    model = randomize(keras.Model(inputs, layers.Concatenate()(parts)))
    merged = merge(model)
    filters = [layer.filters for layer in merged.layers if layer.weights]
    assert filters == [12, 2] and len(merged.layers) == len(model.layers) - 2
    x = samples(model)
    np.testing.assert_allclose(outputs(model, x)[0], outputs(merged, x)[0], atol=1e-5)


def test_deep_rebirth_merged_branches_have_fewer_layers_and_imitate():
    model, x = inception(), np.random.default_rng(0).normal(size=(96, 8, 8, 3)).astype("float32")
    before = model.get_weights()
    start, end = (merge(model, x, epochs=e, learning_rate=0.01, seed=1, verbose=0) for e in (0, 20))
    # Five normalisations, the 1x1 convolution and its activation.
    assert len(end.layers) == len(model.layers) - 5 - 2
    assert "small" not in [layer.name for layer in end.layers]
    large = end.get_layer("large")
    assert (large.filters, large.kernel_size) == (12, (3, 3))
    maps = [
        keras.Model(m.inputs, m.get_layer("join").output).predict(x, verbose=0)
        for m in (model, start, end)
    ]
    # What was there before merging is as it was, until it is trained.
    np.testing.assert_allclose(maps[1][..., 4:], maps[0][..., 4:], atol=1e-5)
    np.testing.assert_allclose(maps[2][..., 12:], maps[0][..., 12:], atol=1e-5)
    losses = [np.mean((m[..., :12] - maps[0][..., :12]) ** 2) for m in maps[1:]]
    assert losses[1] < 0.6 * losses[0]
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_layer_is_what_keras_makes_of_the_concatenated_kernels():
    inputs = keras.Input((6, 6, 2))
    parts = [layers.Conv2D(n, 1, name=f"c{n}")(inputs) for n in (2, 3, 4)]
    model = randomize(keras.Model(inputs, layers.Flatten()(layers.Concatenate(name="join")(parts))))
    merged = merge(model, layers="join")
    # Nothing is left to be concatenated.
    assert len(merged.layers) == 3
    expected = np.concatenate([model.get_layer(f"c{n}").get_weights()[0] for n in (2, 3, 4)], -1)
    np.testing.assert_array_equal(merged.layers[1].get_weights()[0], expected)


def test_in_a_nested_model():
    inner = inception()
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(2)(inner(inputs)))
    model.compile("sgd", "mse")
    merged = merge(model, samples(model), epochs=0)
    assert merged.compiled and len(merged.get_layer(inner.name).layers) == len(inner.layers) - 7


def test_orders_of_branches():
    for order in itertools.permutations(range(3)):
        inputs = keras.Input((6, 6, 2))
        parts = [layers.Conv2D(2 + n, (1, 3, 1)[n], padding="same")(inputs) for n in order]
        model = randomize(keras.Model(inputs, layers.Concatenate()(parts)))
        x = samples(model)
        merged = merge(model)
        np.testing.assert_allclose(outputs(model, x)[0], outputs(merged, x)[0], atol=1e-5)


def test_bad_input_is_refused():
    model = inception()
    with pytest.raises(ValueError, match="merge_branches: this needs data"):
        merge(model)
    with pytest.raises(ValueError, match="No layer matches 'joint'. Did you mean 'join'"):
        merge(model, layers="joint")
    inputs = keras.Input((8, 8, 3))
    parts = [layers.Conv2D(2, 1)(inputs), layers.Conv2D(2, 1, activation="relu")(inputs)]
    with pytest.raises(ValueError, match="merge_branches: nothing to merge"):
        merge(keras.Model(inputs, layers.Concatenate()(parts)))
