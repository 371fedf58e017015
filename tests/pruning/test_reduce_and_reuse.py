"""`reduce_and_reuse`: the kept channels stand in for the dropped ones."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
reduce_and_reuse = kc.pruning.reduce_and_reuse


def weights_of(layer):
    return [keras.ops.convert_to_numpy(v) for v in layer.weights]


def conv_model(after):
    """Six filters, the last two of which are 0.01 times the first two, then `after`."""
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(6, 3, activation="relu", name="conv")]
    )
    for layer in after:
        model.add(layer)
    kernel, bias = weights_of(model.get_layer("conv"))
    kernel = kernel.copy()
    kernel[..., 4:] = 0.01 * kernel[..., :2]
    model.get_layer("conv").set_weights([kernel, bias])
    return model


AFTER = {
    "conv": lambda: [
        keras.layers.Conv2D(4, 3, padding="same", strides=2),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    ],
    "flatten": lambda: [keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dense(3)],
    "transpose": lambda: [keras.layers.Conv2DTranspose(4, 3, strides=2), keras.layers.Flatten()],
    "attention-like": lambda: [
        keras.layers.Reshape((36, 6)),
        keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)),
    ],
    "lstm": lambda: [keras.layers.Reshape((36, 6)), keras.layers.LSTM(3)],
}


@pytest.mark.parametrize("after", AFTER)
def test_a_channel_that_repeats_another_is_dropped_at_no_cost(after):
    model = conv_model(AFTER[after]())
    before = model.get_weights()
    x = RNG.normal(size=(40, 8, 8, 3)).astype("float32")
    small = reduce_and_reuse(model, "conv", 4, x, batch_size=16)
    np.testing.assert_array_equal(
        weights_of(small.get_layer("conv"))[0], weights_of(model.get_layer("conv"))[0][..., :4]
    )
    # On other data than that of the fit, too.
    new = RNG.normal(size=(5, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(
        small.predict(new, verbose=0), model.predict(new, verbose=0), atol=1e-5
    )
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_duplicated_channel_is_dropped_with_zero_output_change():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, activation="tanh", name="fc"),
            keras.layers.Dense(3),
        ]
    )
    kernel, bias = weights_of(model.get_layer("fc"))
    kernel = kernel * [3, 3, 0.1, 0.1]
    kernel[:, 3] = kernel[:, 2]
    model.get_layer("fc").set_weights([kernel, bias])
    x = RNG.normal(size=(64, 5)).astype("float32")
    small = reduce_and_reuse(model, "fc", 0.75, x)
    assert small.get_layer("fc").units == 3
    np.testing.assert_allclose(small.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_the_map_equals_lstsq_of_dropped_on_kept_activations():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, padding="same", name="conv")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu", name="maps")(x)
    # Two readers, and a depthwise layer on the way to one of them.
    left = keras.layers.Conv2D(4, 3, padding="same", name="left")(x)
    middle = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    right = keras.layers.Conv2D(4, 1, name="right")(middle)
    outputs = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([left, right]))
    model = keras.Model(inputs, outputs)
    data = RNG.normal(size=(30, 8, 8, 3)).astype("float32")
    small = reduce_and_reuse(model, "conv", 4, data)
    maps, between = keras.Model(
        inputs, [model.get_layer("maps").output, model.get_layer("depthwise").output]
    ).predict(data, verbose=0)
    dropped = np.sort(np.argsort(maps.var((0, 1, 2)))[:2])
    kept = np.setdiff1d(np.arange(6), dropped)
    for name, tensor in {"left": maps, "right": between}.items():
        rows = tensor.reshape(-1, 6).astype("float64")
        reuse = np.linalg.lstsq(rows[:, kept], rows[:, dropped], rcond=None)[0]
        kernel = weights_of(model.get_layer(name))[0]
        expected = kernel[:, :, kept] + np.einsum("kd,hwdo->hwko", reuse, kernel[:, :, dropped])
        np.testing.assert_allclose(
            weights_of(small.get_layer(name))[0], expected, rtol=1e-4, atol=1e-6
        )


def test_reuse_is_nearer_to_the_model_than_removal_alone_and_adds_no_layer():
    model = conv_model(AFTER["flatten"]())
    x = RNG.normal(size=(60, 8, 8, 3)).astype("float32")
    reused = reduce_and_reuse(model, "conv", 3, x)
    removed = kc.pruning.prune_channels(model, "activation_variance", 0.5, x, layers="conv")
    target = model.predict(x, verbose=0)
    errors = [np.square(m.predict(x, verbose=0) - target).mean() for m in (reused, removed)]
    assert errors[0] < 0.7 * errors[1]
    assert reused.count_params() == removed.count_params()


def test_bad_input_is_refused():
    model = conv_model(AFTER["flatten"]())
    x = np.ones((2, 8, 8, 3))
    with pytest.raises(ValueError, match="no layer 'con' .*Did you mean 'conv'"):
        reduce_and_reuse(model, "con", 3, x)
    with pytest.raises(ValueError, match="`keep` must be an integer from 1 to 6; got keep=7"):
        reduce_and_reuse(model, "conv", 7, x)
    with pytest.raises(ValueError, match=r"`keep` must be a number in \(0, 1\]"):
        reduce_and_reuse(model, "conv", 1.5, x)
    with pytest.raises(ValueError, match="must stay"):
        reduce_and_reuse(model, model.layers[-1].name, 2, x)
    with pytest.raises(ValueError, match="reduce_and_reuse: samples for input"):
        reduce_and_reuse(model, "conv", 3, x[..., :2])
    separable = conv_model([keras.layers.SeparableConv2D(4, 3, name="sep"), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="'sep' .SeparableConv2D. filters each channel"):
        reduce_and_reuse(separable, "conv", 3, x)
