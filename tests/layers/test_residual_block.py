"""ResidualBlock (ResNet)."""

import numpy as np
import pytest

import keras_compress as kc
from tests.layers.blocks import IMAGE, make, numpy, randomized, samples


def silenced(block):
    block.norm2.gamma.assign(np.zeros(block.filters))
    block.norm2.beta.assign(np.zeros(block.filters))
    return block


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_resnet_with_a_zero_branch_is_the_identity_then_relu(shortcut):
    block = silenced(randomized(kc.layers.ResidualBlock(12, shortcut=shortcut), IMAGE))
    x = samples(IMAGE)
    np.testing.assert_array_equal(numpy(block(x)), np.maximum(x, 0))
    # Nothing is added where nothing changes.
    assert len(block.weights) == 10


def test_resnet_option_a_strides_and_pads_with_zeros():
    block, x = make("residual-pad")
    outputs = numpy(silenced(block)(x))
    np.testing.assert_array_equal(outputs[..., :12], np.maximum(x[:, ::2, ::2], 0))
    assert (outputs[..., 12:] == 0).all() and len(block.trainable_weights) == 6


def test_resnet_projection_is_a_strided_product_of_the_channels():
    block, x = make("residual-projection")
    outputs = numpy(silenced(block)(x))
    gamma, beta, mean, variance = (numpy(w) for w in block.projection_norm.weights)
    product = x[:, ::2, ::2] @ numpy(block.projection.kernel)[0, 0]
    scale = gamma / np.sqrt(variance + block.projection_norm.epsilon)
    expected = np.maximum((product - mean) * scale + beta, 0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_fewer_channels_need_a_projection():
    with pytest.raises(ValueError, match="fewer than the 12 of the input; take shortcut='proj"):
        kc.layers.ResidualBlock(8).build((None, *IMAGE))
    with pytest.raises(ValueError, match="`shortcut` must be one of 'pad', 'projection'"):
        kc.layers.ResidualBlock(8, shortcut="padding")
