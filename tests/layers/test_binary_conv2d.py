"""BinaryConv2D: BNN and XNOR-Net forms against explicit loops and Conv2D."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import BinaryConv2D

RNG = np.random.default_rng(0)


def run(layer, inputs):
    return ops.convert_to_numpy(layer(np.asarray(inputs, "float32")))


def sign(values):
    return np.where(values >= 0, 1.0, -1.0)


def windows(inputs, size, stride=1, dilation=1):
    """Valid windows of `inputs`: yields `((i, j), window)`."""
    span = [dilation * (k - 1) + 1 for k in size]
    rows = range(0, inputs.shape[1] - span[0] + 1, stride)
    columns = range(0, inputs.shape[2] - span[1] + 1, stride)
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            window = inputs[:, r : r + span[0] : dilation, c : c + span[1] : dilation]
            yield (i, j), window


def test_bnn_equals_xnor_and_popcount_on_patches():
    layer = BinaryConv2D(6, (3, 2), strides=2, use_bias=False)
    x = RNG.normal(size=(2, 7, 6, 3))
    outputs = run(layer, x)
    weights = np.packbits(ops.convert_to_numpy(layer.kernel).reshape(-1, 6).T >= 0, axis=1)
    for (i, j), window in windows(x, (3, 2), stride=2):
        bits = np.packbits(window.reshape(2, -1) >= 0, axis=1)
        differing = np.bitwise_count(bits[:, None] ^ weights[None]).sum(axis=-1, dtype=int)
        np.testing.assert_array_equal(outputs[:, i, j], 18 - 2 * differing)


def test_bnn_border_of_same_padding_adds_nothing():
    layer = BinaryConv2D(4, 3, padding="same", use_bias=False)
    x = RNG.normal(size=(2, 5, 5, 3))
    outputs = run(layer, x)
    padded = np.pad(sign(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = sign(ops.convert_to_numpy(layer.kernel))
    for (i, j), window in windows(padded, (3, 3)):
        np.testing.assert_array_equal(
            outputs[:, i, j], np.tensordot(window, kernel, axes=[[1, 2, 3], [0, 1, 2]])
        )


@pytest.mark.parametrize("dilation", [1, 2])
def test_xnor_input_scale_is_the_box_filter_of_the_channel_mean(dilation):
    layer = BinaryConv2D(
        5,
        (2, 3),
        dilation_rate=dilation,
        scale="mean_abs",
        input_scale="xnor",
        use_bias=False,
    )
    x = RNG.normal(size=(2, 7, 8, 3))
    outputs = run(layer, x)
    kernel = ops.convert_to_numpy(layer.kernel)
    alpha = np.abs(kernel).mean(axis=(0, 1, 2))
    for (i, j), window in windows(x, (2, 3), dilation=dilation):
        magnitude = np.abs(window).mean(axis=3).mean(axis=(1, 2))
        product = np.tensordot(sign(window), sign(kernel), axes=[[1, 2, 3], [0, 1, 2]])
        np.testing.assert_allclose(
            outputs[:, i, j], product * magnitude[:, None] * alpha, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": "same"},
        {"padding": "same", "strides": 2},
        {"padding": "same", "dilation_rate": 2},
        {"groups": 2},
        {"data_format": "channels_first", "padding": "same"},
    ],
    ids=["valid", "same", "strided", "dilated", "groups", "channels-first"],
)
def test_xnor_equals_conv2d_for_inputs_and_weights_of_one_magnitude(arguments):
    layer = BinaryConv2D(6, 3, scale="mean_abs", input_scale="xnor", **arguments)
    shape = (3, 4, 8, 7) if layer.data_format == "channels_first" else (3, 8, 7, 4)
    layer.build(shape)
    magnitudes = np.linspace(0.1, 0.9, 6)
    layer.kernel.assign(magnitudes * sign(RNG.normal(size=layer.kernel.shape)))
    conv = keras.layers.Conv2D(6, 3, **arguments)
    conv.build(shape)
    conv.kernel.assign(layer.kernel)
    x = 1.7 * sign(RNG.normal(size=shape))
    np.testing.assert_allclose(run(layer, x), run(conv, x), rtol=1e-4, atol=1e-4)


def test_xnor_groups_have_their_own_input_scale():
    layer = BinaryConv2D(4, 3, groups=2, input_scale="xnor", use_bias=False)
    x = RNG.normal(size=(2, 6, 5, 6))
    outputs = run(layer, x)
    kernel = ops.convert_to_numpy(layer.kernel)
    for group in range(2):
        alone = BinaryConv2D(2, 3, input_scale="xnor", use_bias=False)
        part = x[..., 3 * group : 3 * group + 3]
        alone.build(part.shape)
        alone.kernel.assign(kernel[..., 2 * group : 2 * group + 2])
        filters = outputs[..., 2 * group : 2 * group + 2]
        np.testing.assert_allclose(filters, run(alone, part), rtol=1e-5, atol=1e-5)


def test_xnor_takes_images_of_any_size():
    model = keras.Sequential(
        [keras.Input((None, None, 4)), BinaryConv2D(6, 3, groups=2, input_scale="xnor")]
    )
    assert model.output_shape == (None, None, None, 6)
    x = RNG.normal(size=(2, 9, 5, 4)).astype("float32")
    np.testing.assert_allclose(model.predict(x, verbose=0), run(model, x), rtol=1e-4, atol=1e-4)


def test_bnn_latent_weights_stay_in_the_unit_interval():
    model = keras.Sequential([keras.Input((6, 6, 2)), BinaryConv2D(4, 3)])
    model.compile(keras.optimizers.SGD(5.0), loss="mse")
    model.fit(RNG.normal(size=(32, 6, 6, 2)), RNG.normal(size=(32, 4, 4, 4)), verbose=0)
    assert np.abs(ops.convert_to_numpy(model.layers[0].kernel)).max() == 1


def test_bwn_from_layer_keeps_groups_and_approximates():
    conv = keras.layers.Conv2D(12, 3, groups=2, padding="same", activation="relu")
    x = RNG.normal(size=(4, 10, 10, 16)).astype("float32")
    expected = ops.convert_to_numpy(conv(x))
    layer = BinaryConv2D.from_layer(conv)
    assert layer.groups == 2
    assert np.corrcoef(run(layer, x).ravel(), expected.ravel())[0, 1] > 0.8


def test_storage_and_macs():
    layer = BinaryConv2D(8, 3, padding="same", strides=2, groups=2, scale="mean_abs")
    layer.build((None, 9, 9, 4))
    assert layer.storage_bits() == 3 * 3 * 2 * 8 + 32 * 8 + 32 * 8
    assert layer.macs((None, 9, 9, 4)) == 5 * 5 * 3 * 3 * 2 * 8


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="`groups` must divide the filters, 6; got groups=4"):
        BinaryConv2D(6, 3, groups=4)
    with pytest.raises(ValueError, match="`groups` must divide the input channels, 3"):
        BinaryConv2D(6, 3, groups=2).build((None, 8, 8, 3))
