"""DepthwiseSeparableConv2D (MobileNets), also fitted to trained convolutions."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.layers.blocks import RNG, make, numpy, randomized, samples


def test_mobilenets_block_is_depthwise_norm_relu_pointwise_norm_relu():
    block, x = make("separable")

    def normalised(z, norm):
        gamma, beta, mean, variance = (numpy(w) for w in norm.weights)
        return np.maximum((z - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta, 0)

    depthwise, pointwise = keras.layers.DepthwiseConv2D(3, 2, "same", 2), keras.layers.Conv2D(6, 1)
    for layer, source in ((depthwise, block.depthwise), (pointwise, block.pointwise)):
        layer.build((None, None, None, 12 if layer is depthwise else 24))
        layer.kernel.assign(source.kernel)
    middle = normalised(numpy(depthwise(x)), block.depthwise_norm)
    expected = normalised(numpy(pointwise(middle)), block.pointwise_norm)
    np.testing.assert_allclose(numpy(block(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel_size, filters", [(3, 64), (5, 24)])
def test_mobilenets_share_of_multiply_accumulates(kernel_size, filters):
    block = kc.layers.DepthwiseSeparableConv2D(filters, kernel_size)
    conv = keras.Sequential(
        [keras.Input((8, 8, 16)), keras.layers.Conv2D(filters, kernel_size, padding="same")]
    )
    share = block.macs((None, 8, 8, 16)) / kc.profile.macs(conv)
    np.testing.assert_allclose(share, 1 / filters + 1 / kernel_size**2, rtol=1e-12)


@pytest.mark.parametrize("strides, padding", [(1, "same"), (2, "same"), (2, "valid")])
def test_full_multiplier_is_exact_and_fewer_are_truncated_svds(strides, padding):
    conv = randomized(
        keras.layers.Conv2D(10, 3, strides, padding, activation="relu", name="conv"), (7, 8, 4)
    )
    x = samples((7, 8, 4))
    block = kc.layers.DepthwiseSeparableConv2D.from_layer(conv, 9)
    assert block.name == "conv"
    np.testing.assert_allclose(numpy(block(x)), numpy(conv(x)), atol=2e-5)
    block = kc.layers.DepthwiseSeparableConv2D.from_layer(conv, 2)
    kernel = numpy(conv.kernel)
    fitted = np.einsum(
        "ijsm,smt->ijst",
        numpy(block.depthwise.kernel),
        numpy(block.pointwise.kernel).reshape(4, 2, 10),
    )
    values = [np.linalg.svd(kernel[:, :, s].reshape(9, 10), compute_uv=False) for s in range(4)]
    missed = sum(np.sum(v[2:] ** 2) for v in values)
    np.testing.assert_allclose(np.sum((kernel - fitted) ** 2), missed, rtol=1e-4)


def test_response_fit_beats_the_kernel_fit_and_finds_a_separable_target():
    conv = randomized(keras.layers.Conv2D(6, 3, use_bias=False), (7, 8, 4))
    patches = RNG.normal(size=(400, 36)) @ RNG.normal(size=(36, 36)) + 0.5
    kernel = numpy(conv.kernel).reshape(36, 6)

    def error(block, targets):
        fitted = np.einsum(
            "ijsm,smt->ijst",
            numpy(block.depthwise.kernel),
            numpy(block.pointwise.kernel).reshape(4, -1, 6),
        )
        given = patches @ fitted.reshape(36, 6) + numpy(block.pointwise.bias)
        return np.square(given - targets).sum() / np.square(targets - targets.mean(0)).sum()

    make_block = kc.layers.DepthwiseSeparableConv2D.from_layer
    targets = patches @ kernel
    assert error(make_block(conv, patches=patches), targets) < 0.8 * error(
        make_block(conv), targets
    )
    wanted = np.einsum("ijs,st->ijst", RNG.normal(size=(3, 3, 4)), RNG.normal(size=(4, 6)))
    responses = patches @ wanted.reshape(36, 6) + 3.0
    conv.kernel.assign(wanted + 0.1 * RNG.normal(size=wanted.shape))
    assert error(make_block(conv, patches=patches, responses=responses), responses) < 1e-4


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`strides` must be equal"):
        kc.layers.DepthwiseSeparableConv2D(4, 3, (1, 2))
    make_block = kc.layers.DepthwiseSeparableConv2D.from_layer
    conv = randomized(keras.layers.Conv2D(8, 3, groups=2), (8, 8, 6))
    with pytest.raises(ValueError, match="groups=2; blocks take the place of convolutions of one"):
        make_block(conv)
    with pytest.raises(ValueError, match="needs a built layer"):
        make_block(keras.layers.Conv2D(8, 3))
    conv = randomized(keras.layers.Conv2D(8, 3), (8, 8, 6))
    with pytest.raises(ValueError, match="`depth_multiplier` must be an integer from 1 to 8"):
        make_block(conv, 9)
