"""`absorb_pooling`: strides in the place of pooling, learnt by imitation."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from tests.pruning.surgery.common import outputs, randomize

absorb = kc.pruning.absorb_pooling


def images(count=64, size=8, channels=3):
    return np.random.default_rng(0).normal(size=(count, size, size, channels)).astype("float32")


def model():
    net = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(6, 3, padding="same", use_bias=False, name="first"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(name="first_pool"),
            layers.Conv2D(5, 3, padding="same", activation="relu", name="second"),
            layers.AveragePooling2D(2, name="second_pool"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    return randomize(net)


def features(net, name, x):
    return keras.Model(net.inputs, net.get_layer(name).output).predict(x, verbose=0)


def test_deep_rebirth_absorbed_convolutions_have_the_shape_of_the_pooled_maps():
    net, x = model(), images()
    before = net.get_weights()
    small = absorb(net, x, epochs=0)
    assert [layer.name for layer in small.layers if layer.weights] == [
        "first",
        "second",
        net.layers[-1].name,
    ]
    assert len(small.layers) == len(net.layers) - 3
    for convolution, pool in (("first", "first_pool"), ("second", "second_pool")):
        assert small.get_layer(convolution).strides == (2, 2)
        assert small.get_layer(convolution).output.shape == net.get_layer(pool).output.shape
    # A quarter of the positions each.
    assert kc.profile.macs(small) == (kc.profile.macs(net) - 60) / 4 + 60
    for a, b in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_deep_rebirth_imitation_loss_falls_layer_by_layer():
    net, x = model(), images(128)
    start, end = (absorb(net, x, epochs=e, seed=0, learning_rate=0.01, verbose=0) for e in (0, 15))
    losses = []
    for small in (start, end):
        pairs = ((small.layers[1].name, "first_pool"), ("second", "second_pool"))
        losses.append(
            [np.mean((features(small, a, x) - features(net, b, x)) ** 2) for a, b in pairs]
        )
    assert losses[1][0] < 0.7 * losses[0][0] and losses[1][1] < 0.5 * losses[0][1]
    # The others were frozen.
    for a, b in zip(net.layers[-1].get_weights(), end.layers[-1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_of_inputs_that_are_alike_in_pairs_strides_lose_nothing():
    net = keras.Sequential(
        [keras.Input((8, 3)), layers.Conv1D(4, 1, name="conv"), layers.AveragePooling1D(2)]
    )
    x = np.random.default_rng(0).normal(size=(40, 8, 3)).astype("float32")
    pairs = x[:, ::2].repeat(2, 1)
    small = absorb(net, pairs, epochs=0)
    np.testing.assert_allclose(
        small.predict(pairs, verbose=0), net.predict(pairs, verbose=0), atol=1e-5
    )
    for a, b in zip(net.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_in_nested_models_and_with_padding_changed_where_sizes_ask_for_it():
    inner = keras.Sequential(
        [keras.Input((7, 7, 3)), layers.Conv2D(4, 3, padding="same"), layers.MaxPooling2D()]
    )
    inputs = keras.Input((7, 7, 3))
    net = keras.Model(inputs, layers.GlobalAveragePooling2D()(inner(inputs)))
    net.compile("sgd", "mse")
    small = absorb(net, images(4, 7), epochs=1, verbose=0)
    conv = small.layers[1].layers[0]
    # Seven positions and a pool of two give three: so does a valid convolution.
    assert (conv.padding, conv.strides, len(small.layers[1].layers)) == ("valid", (2, 2), 1)
    assert small.compiled and outputs(small, images(2, 7))[0].shape == (2, 4)


def test_fewer_operations_in_the_tflite_file(tmp_path):
    net, x = model(), images()
    before, after = (
        kc.export.to_tflite(m, tmp_path / f"{i}.tflite")
        for i, m in enumerate((net, absorb(net, x, epochs=1, verbose=0)))
    )
    assert len(after.ops) == len(before.ops) - 2


def test_bad_input_is_refused():
    net, x = model(), images()
    with pytest.raises(ValueError, match="absorb_pooling: `epochs` must be an integer from 0"):
        absorb(net, x, epochs=-1)
    with pytest.raises(ValueError, match="absorb_pooling: `learning_rate` must be a number"):
        absorb(net, x, learning_rate=0)
    with pytest.raises(ValueError, match="absorb_pooling: samples for input"):
        absorb(net, x[..., :2])
    with pytest.raises(ValueError, match="No layer matches 'pool'. Did you mean"):
        absorb(net, x, layers="pool")
    shared = layers.MaxPooling2D(name="shared")
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, name="conv")(inputs)
    net = keras.Model(inputs, [shared(y), y])
    with pytest.raises(ValueError, match="'shared' does not follow a convolution that nothing"):
        absorb(net, x, layers="shared")
    net = keras.Model(
        inputs, layers.MaxPooling2D(3, strides=1, name="pool")(layers.Conv2D(4, 1)(inputs))
    )
    with pytest.raises(ValueError, match="no strides of .* give as many positions as 'pool'"):
        absorb(net, x)
    with pytest.raises(ValueError, match="has no max or average pooling"):
        absorb(keras.Model(inputs, y), x)
