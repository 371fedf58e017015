"""DenseBlock (DenseNet)."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.call_graph import CallGraph
from tests.layers.blocks import IMAGE, numpy, randomized, samples


@pytest.mark.parametrize("bottleneck", [False, True])
def test_densenet_every_earlier_map_is_read_by_every_later_layer(bottleneck):
    block = randomized(kc.layers.DenseBlock(3, 4, bottleneck, name="block"), IMAGE)
    assert block.compute_output_shape((None, *IMAGE))[-1] == 12 + 3 * 4
    calls = {call.operation.name: call for call in CallGraph(block.expand()).calls}

    def sources(value):
        """The layers whose maps a tensor holds, in order, through concats."""
        if value.call is None or not isinstance(value.call.operation, keras.layers.Concatenate):
            return [value.call and value.call.operation.name]
        return [name for part in value.call.inputs for name in sources(part)]

    for number in (1, 2, 3):
        first = f"block_{number}_bottleneck_norm" if bottleneck else f"block_{number}_norm"
        read = sources(calls[first].inputs[0])
        assert read == [None, *(f"block_{earlier}_conv" for earlier in range(1, number))]


def test_densenet_input_comes_first_and_maps_are_appended():
    block = randomized(kc.layers.DenseBlock(2, 4), IMAGE)
    x = samples(IMAGE)
    outputs = numpy(block(x))
    np.testing.assert_array_equal(outputs[..., :12], x)
    norm, _, conv = block.branches[1]
    gamma, beta, mean, variance = (numpy(w) for w in norm.weights)
    scaled = (outputs[..., :16] - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta
    expected = conv(np.maximum(scaled, 0).astype("float32"))
    np.testing.assert_allclose(outputs[..., 16:], numpy(expected), rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`growth_rate` must be a positive integer"):
        kc.layers.DenseBlock(2, 0)
    with pytest.raises(ValueError, match=r"`dropout` must be a number in \[0, 1\)"):
        kc.layers.DenseBlock(2, 2, dropout=1.0)
