"""Depthwise filters of each input channel, mixed: the truncated SVD of each channel."""

import keras
import numpy as np

import keras_compress as kc
from keras_compress.decomposition import decompose

KERNEL = np.random.default_rng(0).normal(size=(3, 2, 4, 10))


def test_the_error_is_what_the_singular_values_left_out_say():
    dropped = 0.0
    for channel in range(4):
        values = np.linalg.svd(KERNEL[:, :, channel].reshape(6, 10), compute_uv=False)
        dropped += np.sum(values[2:] ** 2)
    factors = decompose(KERNEL, "depthwise_separable", 2)
    np.testing.assert_allclose(factors.error(KERNEL) ** 2, dropped / np.sum(KERNEL**2))
    assert decompose(KERNEL, "depthwise_separable", 6).error(KERNEL) < 1e-12


def test_factorize_starts_where_the_block_of_mobilenet_does():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((9, 8, 6))
    x = keras.layers.Conv2D(12, 3, strides=2, activation="relu", name="conv")(x)
    model = keras.Model(inputs, x)
    small = kc.decomposition.factorize(model, "depthwise_separable", rank=1, verbose=0).model
    block = kc.layers.DepthwiseSeparableConv2D.from_layer(model.get_layer("conv"))
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 6)).astype("float32")
    np.testing.assert_allclose(small.predict(x, verbose=0), block(x), atol=1e-5)
    assert kc.profile.macs(small) == block.macs((None, 9, 8, 6))
