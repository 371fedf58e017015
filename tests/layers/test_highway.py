"""HighwayDense and HighwayConv2D (Highway Networks)."""

import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from tests.gradients import gradient
from tests.layers.blocks import make, numpy, samples


@pytest.mark.parametrize("name", ["highway-dense", "highway-conv"])
def test_highway_gate_shut_is_the_identity_and_open_the_layer(name):
    block, x = make(name)
    width = x.shape[-1]
    # Alone: kernels of the gate would move it.
    block.transform.kernel.assign(np.zeros(block.transform.kernel.shape))
    block.transform.bias.assign(np.full(width, -50.0))
    np.testing.assert_allclose(numpy(block(x)), x, atol=1e-6)
    block.transform.bias.assign(np.full(width, 50.0))
    np.testing.assert_allclose(numpy(block(x)), numpy(block.plain(x)), rtol=1e-5, atol=1e-5)
    gate = np.linspace(-1, 1, width)
    block.transform.bias.assign(gate)
    share = 1 / (1 + np.exp(-gate))
    expected = share * numpy(block.plain(x)) + (1 - share) * x
    np.testing.assert_allclose(numpy(block(x)), expected, rtol=1e-5, atol=1e-5)


def test_the_gate_starts_from_its_bias():
    block = kc.layers.HighwayConv2D(transform_bias=-3.0)
    block.build((None, 5, 5, 4))
    np.testing.assert_array_equal(numpy(block.transform.bias), np.full(4, -3.0))
    np.testing.assert_array_equal(numpy(block.plain.bias), np.zeros(4))


def test_highway_gradients_pass_fifty_layers():
    x = samples((6,))
    layers = [kc.layers.HighwayDense(transform_bias=-3.0) for _ in range(50)]
    for layer in layers:
        layer.build(x.shape)
    first, *others = layers

    def loss(kernel):
        change = ops.relu(ops.matmul(x, kernel) + first.plain.bias) - x
        y = x + first.transform(x) * change
        for layer in others:
            y = layer(y)
        return ops.sum(y)

    found = gradient(loss, numpy(first.plain.kernel))
    assert np.isfinite(found).all() and np.abs(found).max() > 1e-3


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="units=8 with 6 inputs. Leave `units` out"):
        kc.layers.HighwayDense(8).build((None, 6))
    with pytest.raises(ValueError, match="filters=8 with 6 inputs. Leave `filters` out"):
        kc.layers.HighwayConv2D(8).build((None, 5, 5, 6))
