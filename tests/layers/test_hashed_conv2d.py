"""HashedConv2D: what the protocol tests do not cover."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import HashedConv2D, HashedDense
from keras_compress.sharing.hashing import buckets_and_signs

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)


def built(kernel_size=3, channels=4, filters=6, **arguments):
    layer = HashedConv2D(filters, kernel_size, **arguments)
    layer.build((None, 9, 9, channels))
    return layer


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def kernel_by_the_definition(layer):
    """V[i, j, s, t] = w[h] xi, entry by entry."""
    shape = (*layer.kernel_size, layer.input_channels, layer.filters)
    w = ops.convert_to_numpy(layer.values)
    h, xi = buckets_and_signs(shape, len(w), layer.seed)
    kernel = np.zeros(shape, "float32")
    for index in np.ndindex(*shape):
        kernel[index] = w[h[index]] * xi[index]
    return kernel


@pytest.mark.parametrize("compression, count", [(1 / 8, 27), (0.1, 22), (1.0, 216)])
def test_chen_trainable_count_is_k_and_the_bias(compression, count):
    layer = built(compression=compression)
    assert count == math.ceil(compression * 3 * 3 * 4 * 6)
    assert sum(math.prod(w.shape) for w in layer.trainable_weights) == count + 6
    assert layer.storage_bits() == 32 * (count + 6)


@pytest.mark.parametrize("training", [False, True])
def test_chen_layer_equals_conv2d_of_v(training):
    layer = built(strides=2, padding="same", seed=5)
    stock = keras.layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)
    stock.build((None, 9, 9, 4))
    stock.kernel.assign(kernel_by_the_definition(layer))
    x = inputs(2, 9, 9, 4)
    np.testing.assert_allclose(layer(x, training=training), stock(x), atol=1e-5)


def test_chen_training_step_moves_each_weight_by_its_bucket_sum():
    layer = HashedConv2D(6, 3, compression=0.1, seed=2, use_bias=False)
    model = keras.Sequential([keras.Input((5, 5, 4)), layer])
    stock = layer.expand()
    other = keras.Sequential([keras.Input((5, 5, 4)), stock])
    x, y = inputs(4, 5, 5, 4), inputs(4, 3, 3, 6, seed=1)
    before = ops.convert_to_numpy(layer.values).copy()
    kernel = ops.convert_to_numpy(stock.kernel).copy()
    for each in (model, other):
        each.compile(keras.optimizers.SGD(1.0), "mse")
        each.train_on_batch(x, y)
    h, xi = buckets_and_signs(kernel.shape, len(before), 2)
    expected = np.zeros(len(before))
    np.add.at(expected, h, xi * (kernel - ops.convert_to_numpy(stock.kernel)))
    np.testing.assert_allclose(before - ops.convert_to_numpy(layer.values), expected, atol=1e-5)


def test_one_pixel_is_hashed_as_a_shape_of_its_own():
    layer, dense = built(1, 64, 32), HashedDense(32)
    dense.build((None, 64))
    for each in (layer, dense):
        each.values.assign(np.arange(1.0, 257.0))
    equal = layer.reconstruct_kernel()[0, 0] == dense.reconstruct_kernel()
    assert np.mean(equal) < 0.05


def test_from_layer_is_the_least_squares_optimum():
    stock = keras.layers.Conv2D(6, 3)
    stock.build((None, 5, 5, 4))
    kernel = ops.convert_to_numpy(stock.kernel)
    layer = HashedConv2D.from_layer(stock, compression=0.25, seed=6)
    h, xi = buckets_and_signs(kernel.shape, 54, 6)
    design = np.zeros((kernel.size, 54))
    design[np.arange(kernel.size), h.ravel()] = xi.ravel()
    expected = np.linalg.lstsq(design, kernel.ravel(), rcond=None)[0]
    np.testing.assert_allclose(layer.values, expected, atol=1e-6)


@on_tensorflow
@pytest.mark.parametrize("kernel_size, strides", [(3, 1), ((3, 2), 2), (1, 1)])
def test_tflite_optimised_for_size_stores_the_values_and_hashes_once(kernel_size, strides):
    from keras_compress.export import to_tflite

    layer = HashedConv2D(96, kernel_size, strides=strides, padding="same", compression=1 / 16)
    model = keras.Sequential([keras.Input((8, 9, 64)), layer])
    x = inputs(2, 8, 9, 64)
    lite = to_tflite(model, calibration=x, optimize_for="size")
    assert {"CALL_ONCE", "READ_VARIABLE", "FULLY_CONNECTED"} <= set(lite.ops)
    assert "CONV_2D" not in lite.ops
    # A byte for each value, the hash of each row and column, and the graph with its taps.
    index = 4 * (math.prod(layer.kernel_size) * 64 + 96)
    assert lite.nbytes < layer.values.shape[0] + index + 12288
    assert lite.nbytes < 1.15 * layer.storage_bits() / 8 + 8192
    assert lite.max_error < 0.05


@on_tensorflow
def test_tflite_optimised_for_latency_is_an_int8_convolution():
    from keras_compress.export import to_tflite

    model = keras.Sequential([keras.Input((8, 8, 32)), HashedConv2D(64, 3)])
    lite = to_tflite(model, calibration=inputs(2, 8, 8, 32))
    assert lite.ops == ["CONV_2D"]
    assert lite.nbytes < 9 * 32 * 64 + 4096
    assert lite.max_error < 0.05


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="HashedConv2D: `groups` must be 1"):
        HashedConv2D(8, 3, groups=2)
    with pytest.raises(ValueError, match="HashedConv2D: `compression` must be"):
        HashedConv2D(8, 3, compression=0)
    grouped = keras.layers.Conv2D(8, 3, groups=2)
    grouped.build((None, 9, 9, 6))
    with pytest.raises(ValueError, match="`groups` must be 1; got groups=2"):
        HashedConv2D.from_layer(grouped)
