"""QuantConv2D and QuantDepthwiseConv2D: scales of filters, gradients, storage."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress import quantizers
from keras_compress.layers import BinaryConv2D, QuantConv2D, QuantDepthwiseConv2D

RNG = np.random.default_rng(0)


def run(layer, inputs):
    return ops.convert_to_numpy(layer(np.asarray(inputs, "float32")))


def test_twn_of_each_filter_is_the_product_of_patches_with_its_own_ternary_weights():
    layer = QuantConv2D(5, (3, 2), kernel_quantizer=quantizers.Ternary(axis=-1), use_bias=False)
    x = RNG.normal(size=(2, 6, 7, 3))
    outputs, kernel = run(layer, x), ops.convert_to_numpy(layer.kernel)
    for f in range(5):
        w = kernel[..., f]
        kept = np.abs(w) > 0.7 * np.abs(w).mean()
        ternary = np.sign(w) * kept * np.abs(w)[kept].mean()
        for i, j in np.ndindex(4, 6):
            expected = np.sum(x[:, i : i + 3, j : j + 2] * ternary, axis=(1, 2, 3))
            np.testing.assert_allclose(outputs[:, i, j, f], expected, rtol=1e-4, atol=1e-5)


def test_binary_conv2d_is_a_preset():
    binary = BinaryConv2D(6, 3, padding="same", scale="mean_abs")
    binary.build((None, 8, 8, 4))
    quant = QuantConv2D(
        6,
        3,
        padding="same",
        kernel_quantizer=quantizers.Sign("mean_abs"),
        input_quantizer="sign",
    )
    quant.build((None, 8, 8, 4))
    quant.kernel.assign(binary.kernel)
    x = RNG.normal(size=(2, 8, 8, 4))
    np.testing.assert_array_equal(run(quant, x), run(binary, x))
    assert isinstance(binary, QuantConv2D)


def test_straight_through_gradient_is_that_of_the_convolution_with_quantised_inputs():
    """One step of SGD against the gradient of a Conv2D on the quantised inputs."""
    x = RNG.uniform(-0.3, 1.3, size=(2, 6, 6, 3)).astype("float32")
    quant = QuantConv2D(
        4, 3, kernel_quantizer="uniform_l2", input_quantizer=quantizers.UnitUniform(2)
    )
    conv = keras.layers.Conv2D(4, 3)
    steps = []
    for layer, inputs in ((quant, x), (conv, np.round(3 * np.clip(x, 0, 1)) / 3)):
        model = keras.Sequential([keras.Input((6, 6, 3)), layer])
        layer.kernel.assign(np.random.default_rng(1).normal(size=layer.kernel.shape))
        before = ops.convert_to_numpy(layer.kernel).copy()
        model.compile(keras.optimizers.SGD(1e-2), loss=lambda t, y: ops.sum(y * t))
        targets = np.random.default_rng(2).normal(size=(2, 4, 4, 4)).astype("float32")
        model.fit(inputs, targets, batch_size=2, verbose=0)
        steps.append(before - ops.convert_to_numpy(layer.kernel))
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-3, atol=1e-5)


def test_storage_is_that_of_the_codes_and_scales():
    layer = QuantConv2D(8, 3, groups=2, kernel_quantizer=quantizers.Uniform(4))
    layer.build((None, 9, 9, 4))
    assert layer.storage_bits() == 4 * 3 * 3 * 2 * 8 + 32 * 8 + 32 * 8
    assert layer.macs((None, 9, 9, 4)) == 7 * 7 * 3 * 3 * 2 * 8


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_scales_belong_to_the_output_channels(multiplier):
    layer = QuantDepthwiseConv2D(
        3, depth_multiplier=multiplier, kernel_quantizer=quantizers.Uniform(4), use_bias=False
    )
    x = RNG.normal(size=(2, 7, 8, 5))
    layer.build(x.shape)
    spread = 10.0 ** np.arange(5 * multiplier).reshape(5, multiplier)
    layer.kernel.assign(spread * RNG.normal(size=(3, 3, 5, multiplier)))
    outputs, kernel = run(layer, x), ops.convert_to_numpy(layer.kernel)
    for channel, m in np.ndindex(5, multiplier):
        w = kernel[:, :, channel, m]
        step = np.abs(w).max() / 7
        w = np.round(w / step) * step
        for i, j in np.ndindex(5, 6):
            expected = np.sum(x[:, i : i + 3, j : j + 3, channel] * w, axis=(1, 2))
            actual = outputs[:, i, j, channel * multiplier + m]
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(w).max())
    assert layer.storage_bits() == 4 * 9 * 5 * multiplier + 32 * 5 * multiplier
    assert layer.macs(x.shape) == 5 * 6 * 9 * 5 * multiplier


def test_depthwise_takes_the_names_of_the_keras_layer():
    constraint = quantizers.WeightClip(0.5)
    layer = QuantDepthwiseConv2D(
        3,
        depthwise_initializer="ones",
        depthwise_regularizer="l2",
        depthwise_constraint=constraint,
        kernel_quantizer="sign",
    )
    layer.build((None, 7, 7, 2))
    assert (ops.convert_to_numpy(layer.kernel) == 1).all()
    assert layer.kernel.constraint is constraint and layer.kernel.regularizer is not None
    config = layer.get_config()
    assert not any(name.startswith("kernel_i") for name in config)
    again = QuantDepthwiseConv2D.from_config(config)
    assert again.kernel_constraint.limit == 0.5 and again.get_config() == config


def test_depthwise_takes_a_trained_layer_with_another_regularizer():
    source = keras.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu")
    x = RNG.normal(size=(2, 6, 6, 4)).astype("float32")
    expected = ops.convert_to_numpy(source(x))
    layer = QuantDepthwiseConv2D.from_layer(
        source, kernel_quantizer="uniform", depthwise_regularizer="l1"
    )
    assert layer.kernel.regularizer is not None and layer.depth_multiplier == 2
    np.testing.assert_allclose(run(layer, x), expected, atol=0.02)
