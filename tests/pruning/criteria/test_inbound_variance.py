"""`InboundVariance`: variances of contributions, pair by pair."""

import keras
import numpy as np
import pytest
import scipy.signal

import keras_compress as kc

RNG = np.random.default_rng(0)
InboundVariance = kc.pruning.criteria.InboundVariance


def conv_model(**options):
    inputs = keras.Input((7, 7, 2))
    x = keras.layers.Conv2D(3, 1, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(4, 3, name="second", **options)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))


def correlation(image, kernel, padding):
    return scipy.signal.correlate2d(image, kernel, "valid" if padding == "valid" else "same")


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_contribution_variance_equals_a_numpy_loop(padding):
    model = conv_model(padding=padding)
    x = RNG.normal(size=(9, 7, 7, 2)).astype("float32")
    maps = keras.ops.convert_to_numpy(model.get_layer("first")(x)).astype("float64")
    kernel = keras.ops.convert_to_numpy(model.get_layer("second").kernel).astype("float64")
    expected = np.empty((3, 4))
    for i in range(3):
        for j in range(4):
            norms = [
                np.linalg.norm(correlation(image[..., i], kernel[..., i, j], padding))
                for image in maps
            ]
            expected[i, j] = np.var(norms)
    scores = InboundVariance()(model, "second", x, batch_size=4)["second/kernel"]
    assert scores.shape == (3, 3, 3, 4)
    np.testing.assert_allclose(
        scores, np.broadcast_to(expected, scores.shape), rtol=1e-4, atol=1e-9
    )
    channels = InboundVariance(granularity="channel")(model, "second", x)["second"]
    np.testing.assert_allclose(channels, expected.sum(1), rtol=1e-4)


def test_dense_layers_strides_and_groups():
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.Conv2D(4, 3, strides=2, groups=2, name="grouped")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="fc")(keras.layers.Flatten()(x)))
    x = RNG.normal(size=(8, 6, 6, 4)).astype("float32")
    scores = InboundVariance()(model, data=x)
    kernel = keras.ops.convert_to_numpy(model.get_layer("grouped").kernel)
    for j in range(4):
        for i in range(2):
            image = x[..., 2 * (j // 2) + i]
            norms = [
                np.linalg.norm(correlation(one, kernel[..., i, j], "valid")[::2, ::2])
                for one in image
            ]
            np.testing.assert_allclose(
                scores["grouped/kernel"][..., i, j], np.var(norms), rtol=1e-4, atol=1e-9
            )
    flat = keras.ops.convert_to_numpy(keras.layers.Flatten()(model.get_layer("grouped")(x)))
    weights = keras.ops.convert_to_numpy(model.get_layer("fc").kernel)
    expected = np.abs(flat).var(0)[:, None] * weights**2
    np.testing.assert_allclose(scores["fc/kernel"], expected, rtol=1e-4, atol=1e-9)


def test_channels_go_by_it_and_a_constant_one_goes_first():
    model = conv_model(padding="valid")
    first = model.get_layer("first")
    kernel = keras.ops.convert_to_numpy(first.kernel).copy()
    kernel[..., 1] = 0
    first.set_weights([kernel, np.array([1.0, 50.0, 1.0])])
    x = RNG.normal(size=(9, 7, 7, 2)).astype("float32")
    criterion = InboundVariance(granularity="channel")
    small = kc.pruning.prune_channels(model, criterion, 1 / 3, data=x, layers="second")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(small.get_layer("first").kernel), kernel[..., [0, 2]]
    )


def test_scores_are_of_inputs_where_a_layer_makes_as_many_channels():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(3, use_bias=False, name="a"),
            keras.layers.Dense(3, use_bias=False, name="b"),
            keras.layers.Dense(1),
        ]
    )
    model.get_layer("a").set_weights([np.diag([1.0, 0.01, 1.0])])
    x = RNG.normal(size=(9, 3)).astype("float32")
    criterion = InboundVariance(granularity="channel")
    small = kc.pruning.prune_channels(model, criterion, 1 / 3, data=x, layers="b")
    assert small.get_layer("b").units == 3
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(small.get_layer("a").kernel), np.eye(3)[:, [0, 2]]
    )


def test_layers_without_such_pairs_are_left_out_or_refused():
    model = keras.Sequential(
        [keras.Input((6, 6, 4)), keras.layers.SeparableConv2D(4, 3, name="separable")]
    )
    model.add(keras.layers.Conv2D(2, 1, name="conv"))
    x = RNG.normal(size=(4, 6, 6, 4)).astype("float32")
    assert list(InboundVariance()(model, data=x)) == ["conv/kernel"]
    with pytest.raises(ValueError, match="separable/depthwise_kernel"):
        InboundVariance()(model, "separable", x)
    with pytest.raises(ValueError, match="`granularity` must be one of 'weight', 'channel'"):
        InboundVariance(granularity="filter")
