"""CodebookConv2D: books shared by kernel positions, tables of input pixels (Wu et al. 2016)."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import CodebookConv2D

RNG = np.random.default_rng(0)


def trained_conv(channels, filters=10, kernel_size=(3, 2), **config):
    layer = keras.layers.Conv2D(filters, kernel_size, bias_initializer="normal", **config)
    layer.build((None, 8, 9, channels))
    layer.kernel.assign(RNG.normal(size=layer.kernel.shape))
    return layer


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"padding": "same"},
        {"strides": (2, 3)},
        {"strides": 2, "padding": "same"},
        {"dilation_rate": (2, 1), "padding": "same"},
        {"kernel_size": 1, "strides": 2},
    ],
    ids=lambda config: "-".join(map(str, config.values())) or "valid",
)
def test_wu_lookup_equals_the_convolution_with_decoded_weights(config):
    conv = trained_conv(6, **config)
    layer = CodebookConv2D.from_layer(conv, method="pq", segment=3, k=8, lookup=True)
    x = RNG.normal(size=(2, 8, 9, 6)).astype("float32")
    book = layer.codebook()
    conv.kernel.assign(book.decode())
    np.testing.assert_allclose(layer(x), conv(x), atol=1e-5)
    # One book for all kernel positions, one code for each.
    assert book.centres.shape == (1, 2, 8, 3)
    assert book.codes.shape == (1, *layer.kernel_size, 2, 10)


def test_lookup_of_open_sizes():
    conv = trained_conv(6, padding="same")
    layer = CodebookConv2D.from_layer(conv, method="pq", segment=3, k=8, lookup=True)
    model = keras.Sequential([keras.Input((None, None, 6)), layer])
    x = RNG.normal(size=(2, 5, 7, 6)).astype("float32")
    np.testing.assert_allclose(model(x), layer.expand()(x), atol=1e-5)
    strided = CodebookConv2D(4, 3, strides=2, padding="same", method="pq", lookup=True)
    with pytest.raises(ValueError, match="must have a known height and width"):
        strided.call(keras.Input((None, None, 4)))


def test_wu_macs_of_tables_count_pixels_once_and_additions_for_each_window():
    layer = CodebookConv2D(10, 3, method="pq", segment=2, k=4, lookup=True, padding="valid")
    layer.build((None, 8, 9, 6))
    assert layer.macs((None, 8, 9, 6)) == 8 * 9 * 4 * 6 + 6 * 7 * 9 * 3 * 10


def test_groups_are_coded_but_not_looked_up():
    conv = trained_conv(6, groups=2)
    layer = CodebookConv2D.from_layer(conv, method="pq", segment=3, k=60)
    np.testing.assert_array_equal(layer.reconstruct_kernel(), ops.convert_to_numpy(conv.kernel))
    with pytest.raises(ValueError, match="groups=2. Use lookup=False"):
        CodebookConv2D.from_layer(conv, method="pq", segment=3, lookup=True)
    with pytest.raises(ValueError, match="must divide the filters, 10"):
        CodebookConv2D(10, 3, groups=4).build((None, 8, 8, 8))
