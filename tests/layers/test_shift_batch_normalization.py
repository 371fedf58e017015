"""ShiftBatchNormalization: the shift-based batch normalisation of BNN."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.layers import ShiftBatchNormalization
from tests.gradients import gradient

RNG = np.random.default_rng(0)


def ap2(x):
    with np.errstate(divide="ignore"):
        return np.where(x == 0, 0.0, np.sign(x) * np.exp2(np.round(np.log2(np.abs(x)))))


def moments(x):
    """Mean and shift variance of the last axis's channels."""
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axes)
    return x.mean(axes), (centred * ap2(centred)).mean(axes)


def build(shape, **options):
    layer = ShiftBatchNormalization(**options)
    layer.build((None, *shape[1:]))
    size = layer.beta.shape
    layer.gamma.assign(RNG.uniform(0.2, 3, size))
    layer.beta.assign(RNG.normal(size=size))
    return layer


def inputs(*shape):
    return (RNG.normal(size=shape) * RNG.uniform(0.1, 9, shape[-1]) + 2).astype("float32")


def array(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("shape", [(32, 5), (4, 6, 6, 3)])
def test_bnn_shift_bn_is_the_formula_of_the_paper(shape):
    x, layer = inputs(*shape), build(shape)
    outputs = array(layer(x, training=True))
    mean, variance = moments(x.astype("float64"))
    hat = (x - mean) * ap2(1 / np.sqrt(variance + 1e-3))
    expected = ap2(array(layer.gamma)) * hat + array(layer.beta)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(array(layer.moving_mean), 0.01 * mean, rtol=1e-4)
    np.testing.assert_allclose(array(layer.moving_variance), 0.99 + 0.01 * variance, rtol=1e-4)


def test_bnn_shift_bn_multiplies_by_powers_of_two_only():
    layer = build((64, 7))
    x = inputs(64, 7)
    outputs = array(layer(x, training=True)) - array(layer.beta)
    ratio = np.abs(outputs / (x - x.mean(0)))
    exponents = np.log2(np.median(ratio, axis=0))
    np.testing.assert_allclose(exponents, np.round(exponents), atol=1e-3)


def test_bnn_shift_bn_at_inference_is_its_stock_layer():
    x, layer = inputs(4, 5, 5, 3), build((4, 5, 5, 3), momentum=0.5)
    for _ in range(5):
        layer(x, training=True)
    stock = layer.expand()
    assert type(stock) is keras.layers.BatchNormalization and stock.name == layer.name
    np.testing.assert_allclose(array(layer(x)), array(stock(x)), rtol=1e-4, atol=1e-4)
    mean, variance = array(layer.moving_mean), array(layer.moving_variance)
    hat = (x - mean) * ap2(1 / np.sqrt(variance + 1e-3))
    expected = ap2(array(layer.gamma)) * hat + array(layer.beta)
    np.testing.assert_allclose(array(layer(x)), expected, rtol=1e-4, atol=1e-4)


def test_bnn_shift_bn_without_scale_or_center():
    x = inputs(16, 3)
    layer = ShiftBatchNormalization(scale=False, center=False)
    mean, variance = moments(x.astype("float64"))
    expected = (x - mean) * ap2(1 / np.sqrt(variance + 1e-3))
    np.testing.assert_allclose(array(layer(x, training=True)), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(array(layer(x)), array(layer.expand()(x)), rtol=1e-4, atol=1e-4)


def test_bnn_shift_bn_of_another_axis():
    x = inputs(8, 4, 4, 3)
    last, first = build(x.shape), ShiftBatchNormalization(axis=1)
    first.build((None, 3, 4, 4))
    first.set_weights(last.get_weights())
    turned = array(first(np.moveaxis(x, -1, 1), training=True))
    expected = array(last(x, training=True))
    np.testing.assert_allclose(np.moveaxis(turned, 1, -1), expected, rtol=1e-5, atol=1e-5)


def test_bnn_shift_bn_mask_leaves_padding_out_of_the_moments():
    x, layer = inputs(4, 6, 3), build((4, 6, 3))
    mask = np.arange(6) < np.array([6, 4, 3, 1])[:, None]
    outputs = array(layer(x, training=True, mask=ops.convert_to_tensor(mask)))
    mean, variance = moments(x[mask].astype("float64"))
    hat = (x - mean) * ap2(1 / np.sqrt(variance + 1e-3))
    expected = ap2(array(layer.gamma)) * hat + array(layer.beta)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_bnn_shift_bn_gradient_goes_straight_through_the_powers():
    """Against an explicit chain rule in which each AP2 has derivative 1."""
    x, upstream = inputs(12, 1).astype("float64"), RNG.normal(size=(12, 1))
    layer = ShiftBatchNormalization(scale=False, center=False)
    layer.build((None, 1))
    got = gradient(
        lambda x: ops.sum(layer(x, training=True) * upstream.astype("float32")),
        x.astype("float32"),
    )
    mean, variance = moments(x)
    centred = x - mean
    shift = ap2(1 / np.sqrt(variance + 1e-3))
    to_shift = (upstream * centred).sum()
    to_variance = to_shift * -0.5 * (variance + 1e-3) ** -1.5
    to_centred = upstream * shift + to_variance * (ap2(centred) + centred) / len(x)
    expected = to_centred - to_centred.mean(0)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_bnn_shift_bn_trains_and_saves(tmp_path):
    keras.utils.set_random_seed(0)
    x = inputs(256, 6)
    y = (x[:, :1] > 2).astype("float32")
    model = keras.Sequential(
        [keras.Input((6,)), ShiftBatchNormalization(momentum=0.8), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.05), keras.losses.BinaryCrossentropy(from_logits=True))
    history = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.3 * history[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="export runs on TensorFlow")
def test_bnn_shift_bn_is_exported_as_its_stock_layer():
    x = inputs(64, 8)
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(4), ShiftBatchNormalization(momentum=0.5)]
    )
    model(x, training=True)
    lite = kc.export.to_tflite(model)
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_refused():
    for name in ("synchronized", "renorm"):
        with pytest.raises(ValueError, match=f"`{name}` must be False"):
            ShiftBatchNormalization(**{name: True})
    with pytest.raises(ValueError, match="call it on a batch"):
        ShiftBatchNormalization().expand()
