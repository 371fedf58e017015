"""ChannelShuffle."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.layers.blocks import numpy, samples


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_shuffling_by_groups_and_by_channels_over_groups_is_the_identity(data_format):
    x = samples((12, 5, 4) if data_format == "channels_first" else (5, 4, 12))
    there = kc.layers.ChannelShuffle(3, data_format)(x)
    back = kc.layers.ChannelShuffle(4, data_format)(there)
    np.testing.assert_array_equal(numpy(back), x)
    axis = 1 if data_format == "channels_first" else -1
    order = np.arange(12).reshape(3, 4).T.ravel()
    np.testing.assert_array_equal(numpy(there), x.take(order, axis))


def test_open_sizes():
    inputs = keras.Input((None, None, 6))
    model = keras.Model(inputs, kc.layers.ChannelShuffle(2)(inputs))
    x = samples((3, 5, 6))
    np.testing.assert_array_equal(numpy(model(x)), x[..., [0, 3, 1, 4, 2, 5]])


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="`groups` must divide.*groups=5 with 12.*by 2, 3, 4, 6"):
        kc.layers.ChannelShuffle(5)(samples((2, 2, 12)))
    with pytest.raises(ValueError, match="`groups` must be a positive integer; got groups=0"):
        kc.layers.ChannelShuffle(0)
