"""LCCLConv2D: a convolution times a cheap layer, whose zeros are positions to skip."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.layers.blocks import RNG, make, numpy, randomized, samples

GEOMETRIES = [
    ("1x1", 1, "same", 1, 1),
    ("1x1", 2, "same", 1, 1),
    ("1x1", (1, 2), "valid", 1, 2),
    ("shared", 1, "valid", (2, 1), 2),
    ("shared", 2, "same", 1, 1),
]


def layer_of(kind, strides, padding, dilation_rate, groups):
    """A layer about half of whose LCCL is zero."""
    layer = kc.layers.LCCLConv2D(
        6,
        (3, 4),
        strides,
        padding,
        dilation_rate=dilation_rate,
        groups=groups,
        activation="tanh",
        kind=kind,
    )
    randomized(layer, (9, 11, 4))
    layer.lccl_norm.beta.assign(0.1 * RNG.normal(size=layer.lccl_norm.beta.shape))
    return layer


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_lccl_only_nonzero_positions_need_computing_and_the_skip_ratio_is_the_share_of_zeros(
    geometry,
):
    layer, x = layer_of(*geometry), samples((9, 11, 4), 2)
    outputs, macs = layer.run_sparse(x)
    np.testing.assert_allclose(outputs, numpy(layer(x)), atol=1e-5)
    # No output of tanh is zero by itself here.
    zeros = np.mean(numpy(layer(x)) == 0)
    assert layer.skip_ratio(x) == zeros and 0.1 < zeros < 0.9
    one = layer.convolution.kernel.shape
    assert macs == np.count_nonzero(outputs) * one[0] * one[1] * one[2]


def test_lccl_output_is_convolution_times_normalised_relu_of_the_1x1():
    layer, x = layer_of("1x1", 1, "valid", 2, 2), samples((9, 11, 4))
    conv = keras.ops.conv(x, layer.convolution.kernel, 1, "valid", dilation_rate=2)
    conv = np.tanh(numpy(conv) + numpy(layer.convolution.bias))
    # Windows of 5x7: their centres.
    z = x[:, 2:-2, 3:-3] @ numpy(layer.lccl.kernel)[0, 0]
    gamma, beta, mean, variance = (numpy(w) for w in layer.lccl_norm.weights)
    z = (z - mean) / np.sqrt(variance + layer.lccl_norm.epsilon) * gamma + beta
    np.testing.assert_allclose(numpy(layer(x)), conv * np.maximum(z, 0), rtol=1e-4, atol=1e-5)


def test_lccl_shared_has_one_filter_for_all_channels():
    layer, x = make("lccl-shared")
    assert layer.lccl.kernel.shape == (3, 3, 12, 1)
    # ReLU of the convolution is zero too, but whole positions only where the LCCL is.
    _, macs = layer.run_sparse(x)
    per_position = 9 * 12 * 5
    assert macs == round((1 - layer.skip_ratio(x)) * 4 * 4 * 4 * per_position)
    assert layer.macs((None, 7, 8, 12)) == 4 * 4 * (per_position + 9 * 12)


@pytest.mark.parametrize("kind", ["1x1", "shared"])
def test_lccl_from_layer_gives_what_the_convolution_gives_and_learns_to_skip(kind):
    conv = keras.layers.Conv2D(6, 3, 2, "same", groups=2, activation="relu", name="conv")
    randomized(conv, (8, 8, 4))
    layer, x = kc.layers.LCCLConv2D.from_layer(conv, kind), samples((8, 8, 4), 16)
    assert layer.name == "conv" and layer.skip_ratio(x) == 0
    np.testing.assert_allclose(numpy(layer(x)), numpy(conv(x)), atol=1e-6)
    model = keras.Sequential([keras.Input((8, 8, 4)), layer])
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    wanted = numpy(conv(x)) * (x[:, ::2, ::2, :1] > 0)
    before = np.mean((numpy(layer(x)) - wanted) ** 2)
    model.fit(x, wanted, epochs=30, verbose=0)
    assert np.mean((numpy(layer(x)) - wanted) ** 2) < 0.7 * before
    assert layer.skip_ratio(x) > 0.1
    fresh = kc.layers.LCCLConv2D.from_layer(conv, kind, exact=False)
    np.testing.assert_array_equal(fresh.convolution.kernel, conv.kernel)
    assert 0.2 < fresh.skip_ratio(x) < 0.8


def test_lccl_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="`kind` must be one of '1x1', 'shared'; got kind='1'"):
        kc.layers.LCCLConv2D(4, 3, kind="1")
    with pytest.raises(ValueError, match="`filters` must be a multiple of `groups`"):
        kc.layers.LCCLConv2D(4, 3, groups=3)
    with pytest.raises(ValueError, match="`strides` > 1 does not go with"):
        kc.layers.LCCLConv2D(4, 3, 2, dilation_rate=2)
    with pytest.raises(ValueError, match="`activation` must be elementwise"):
        kc.layers.LCCLConv2D(4, 3, activation="softmax")
    with pytest.raises(ValueError, match="starts from a keras.layers.Conv2D; got Dense"):
        kc.layers.LCCLConv2D.from_layer(keras.layers.Dense(4))
    x = np.ones((1, 5, 5, 4))
    with pytest.raises(ValueError, match=r"`mask` must have the shape of the outputs, \(1, 3, 3"):
        kc.sparse.masked_conv2d(x, np.ones((3, 3, 4, 6)), np.ones((1, 5, 5, 6)))
    with pytest.raises(ValueError, match="channels / groups, filters"):
        kc.sparse.masked_conv2d(x, np.ones((3, 3, 3, 6)), np.ones((1, 3, 3, 6)))
