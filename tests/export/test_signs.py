"""Kernels that multiply signs: LiteRT gives Keras's integers, with and without XNNPACK."""

import keras
import numpy as np
import pytest

from keras_compress import quantizers
from keras_compress.export import to_tflite
from keras_compress.layers import BinaryConv2D, BinaryDense, QuantConv2D, QuantDense
from tests.export.stored_models import assert_clean, run

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


def export(layer, input_shape, **options):
    """A model of the layer, bias and scales random, and its file."""
    model = keras.Sequential([keras.Input(input_shape), layer])
    if layer.bias is not None:
        layer.bias.assign(RNG.normal(size=layer.bias.shape))
    lite = to_tflite(model, **options)
    assert_clean(lite)
    return model, lite


def assert_exact(model, lite, input_shape, batch=1, atol=1e-4):
    """Random inputs, among them zeros, and inputs of one sign only."""
    random = RNG.normal(size=(batch, *input_shape)).astype("float32")
    random.flat[::7] = 0
    for x in (random, np.abs(random), -np.abs(random) - 1):
        expected = model.predict_on_batch(x)
        for delegate in (True, False):
            actual = run(lite, x, delegate=delegate)
            np.testing.assert_allclose(actual, expected, atol=atol, rtol=0, err_msg=f"{delegate=}")


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("sizes", [(256, 16), (33, 5)])
@pytest.mark.parametrize("optimize_for", ["latency", "size"])
def test_dense_layers_of_signs_are_exact(batch_size, sizes, optimize_for):
    inputs, units = sizes
    layer = BinaryDense(units, scale=None if batch_size == 1 else "mean_abs")
    made = export(layer, (inputs,), batch_size=batch_size, optimize_for=optimize_for)
    assert_exact(*made, (inputs,), batch_size or 4)
    assert made[1].ops.count("FULLY_CONNECTED") == 1 and "ADD" not in made[1].ops


def test_one_bit_weights_decoded_at_load_are_exact():
    layer = BinaryDense(512, use_bias=False)
    made = export(layer, (256,), optimize_for="size")
    assert made[1].layers[0].form == "1-bit codes, decoded once"
    assert_exact(*made, (256,))


@pytest.mark.parametrize("batch_size", [1, None])
@pytest.mark.parametrize("optimize_for", ["latency", "size"])
@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": "valid"},
        {"padding": "same"},
        {"padding": "same", "strides": 2},
        {"padding": "same", "strides": (1, 3)},
        {"padding": "same", "dilation_rate": 2},
        {"padding": "valid", "dilation_rate": (2, 1)},
        {"padding": "same", "kernel_size": 1, "strides": 2},
        {"padding": "same", "kernel_size": 2, "strides": 2},
        {"padding": "same", "kernel_size": (1, 4), "activation": "relu"},
    ],
)
def test_convolutions_of_signs_are_exact(batch_size, optimize_for, geometry):
    layer = BinaryConv2D(24, **{"kernel_size": 3, **geometry})
    shape = (8, 10, 32)
    made = export(layer, shape, batch_size=batch_size, optimize_for=optimize_for)
    assert_exact(*made, shape, batch_size or 2)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel_quantizer", ["ternary", quantizers.Uniform(8)])
def test_images_of_any_size(padding, kernel_quantizer):
    layer = QuantConv2D(
        8, 3, padding=padding, kernel_quantizer=kernel_quantizer, input_quantizer="sign"
    )
    made = export(layer, (None, None, 9), batch_size=None)
    assert_exact(*made, (5, 7, 9), 2)
    assert_exact(*made, (4, 4, 9))


@pytest.mark.parametrize("optimize_for", ["latency", "size"])
@pytest.mark.parametrize(
    "kernel_quantizer",
    [
        quantizers.Ternary(),
        quantizers.Uniform(4),
        quantizers.Uniform(8),
        quantizers.FixedPoint(8, 7),
        quantizers.DoReFaWeight(2),
        quantizers.PowerOfTwo(3),
    ],
)
@pytest.mark.parametrize("channels", [7, 32])
def test_integers_of_any_grid_are_exact(kernel_quantizer, optimize_for, channels):
    options = {"kernel_quantizer": kernel_quantizer, "input_quantizer": "sign"}
    layer = QuantConv2D(16, 3, padding="same", activation="relu6", **options)
    made = export(layer, (6, 6, channels), optimize_for=optimize_for)
    assert_exact(*made, (6, 6, channels))
    layer = QuantDense(8, **options)
    assert_exact(*export(layer, (5, channels), optimize_for=optimize_for), (5, channels))


@pytest.mark.parametrize("optimize_for", ["latency", "size"])
@pytest.mark.parametrize("order", [2, 5])
def test_a_codebook_adds_no_more_than_the_rounding_of_its_values(order, optimize_for):
    quantizer = quantizers.ResidualSign(order, axis=None)
    layer = QuantConv2D(32, 3, padding="same", kernel_quantizer=quantizer, input_quantizer="sign")
    model, lite = export(layer, (6, 6, 64), optimize_for=optimize_for)
    x = RNG.normal(size=(1, 6, 6, 64)).astype("float32")
    step = np.abs(layer.reconstruct_kernel()).max() / 96
    error = run(lite, x) - model.predict_on_batch(x)
    # Rounding errors of 576 weights, of random signs: far below those of a wrong sum.
    assert np.abs(error).max() < 5 * np.sqrt(576 / 12) * step
    assert abs(error[:, 0].mean()) < step * 3


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_sums_too_large_for_an_integer_are_exact(padding):
    layer = BinaryConv2D(4, 3, padding=padding, kernel_initializer="ones")
    made = export(layer, (5, 5, 300))
    # 2,700 terms: the last bit of float32 is not far below this.
    assert_exact(*made, (5, 5, 300), atol=1e-3)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("optimize_for", ["latency", "size"])
def test_xnors_magnitudes_multiply_the_exact_sums(padding, optimize_for):
    layer = BinaryConv2D(8, 3, padding=padding, scale="mean_abs", input_scale="xnor")
    made = export(layer, (6, 6, 32), optimize_for=optimize_for)
    assert_exact(*made, (6, 6, 32))
    layer = BinaryDense(8, scale="mean_abs", input_scale="xnor")
    assert_exact(*export(layer, (64,), optimize_for=optimize_for), (64,))


def test_a_layer_called_twice_is_stored_once():
    layer = BinaryDense(64)
    inputs = keras.Input((64,))
    model = keras.Model(inputs, layer(layer(inputs)))
    layer.bias.assign(RNG.normal(size=64))
    lite = to_tflite(model)
    assert_clean(lite)
    assert_exact(model, lite, (64,))


def test_a_padded_convolution_takes_one_more_channel():
    layer = BinaryConv2D(64, 3, padding="same")
    _, lite = export(layer, (8, 8, 64))
    assert lite.ops == ["GREATER_EQUAL", "CAST", "PADV2", "CONV_2D"]
    assert lite.layers[0].nbytes == 9 * 65 * 64
