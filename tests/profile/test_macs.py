"""MACs counted by hand, and against the outputs' own definition."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc


def sequential(shape, *stack):
    return keras.Sequential([keras.Input(shape), *stack])


@pytest.mark.parametrize(
    "model,expected",
    [
        (lambda: sequential((5,), layers.Dense(7)), 35),
        (lambda: sequential((4, 5), layers.Dense(7)), 4 * 35),
        (lambda: sequential((8, 8, 3), layers.Conv2D(4, 3)), 36 * 27 * 4),
        (lambda: sequential((8, 8, 3), layers.Conv2D(4, 3, 2, "same")), 16 * 27 * 4),
        (lambda: sequential((8, 8, 4), layers.Conv2D(6, 3, groups=2)), 36 * 9 * 2 * 6),
        (lambda: sequential((8, 3), layers.Conv1D(4, 3)), 6 * 9 * 4),
        (lambda: sequential((8, 8, 3), layers.DepthwiseConv2D(3, depth_multiplier=2)), 36 * 9 * 6),
        (lambda: sequential((8, 8, 3), layers.SeparableConv2D(5, 3)), 36 * (27 + 15)),
        (lambda: sequential((4, 4, 3), layers.Conv2DTranspose(5, 2, 2)), 16 * 4 * 15),
        (lambda: sequential((6, 3), layers.LSTM(4)), 6 * (3 + 4) * 16),
        (lambda: sequential((6, 3), layers.Bidirectional(layers.GRU(4))), 2 * 6 * (3 + 4) * 12),
        (lambda: sequential((6, 3), layers.TimeDistributed(layers.Dense(4))), 6 * 12),
        (lambda: sequential((6, 3), layers.EinsumDense("abc,cd->abd", (None, 4))), 72),
        (lambda: sequential((6, 3), layers.EinsumDense("...x,xy->...y", 4)), 72),
        (lambda: sequential((9,), layers.Embedding(10, 4), layers.Flatten(), layers.Dense(2)), 72),
    ],
)
def test_macs_of_stock_layers_by_hand(model, expected):
    assert kc.profile.macs(model()) == expected


def test_macs_of_attention():
    x = keras.Input((5, 8))
    y = layers.MultiHeadAttention(2, 3)(x, x)
    projections = 3 * 5 * 8 * 6 + 5 * 6 * 8
    assert kc.profile.macs(keras.Model(x, y)) == projections + 2 * (2 * 5 * 5 * 3)


def test_shared_and_nested_layers_count_once_a_call():
    inner = sequential((4,), layers.Dense(4), layers.Dense(4))
    x = keras.Input((4,))
    shared = layers.Dense(4)
    y = shared(shared(inner(x)) + x)
    assert kc.profile.macs(keras.Model(x, [y, layers.Dense(2)(y)])) == 4 * 16 + 8


def test_compressed_layers_count_their_own():
    layer = kc.layers.TTDense(64, rank=2, input_modes=(8, 8), output_modes=(8, 8))
    assert kc.profile.macs(sequential((64,), layer)) == 2 * 8 * 8 * 2 * 8


@pytest.mark.parametrize("name,published", [("MobileNetV2", 300.8e6), ("ResNet50", 3.86e9)])
def test_macs_of_published_networks(name, published):
    model = getattr(keras.applications, name)(weights=None)
    assert kc.profile.macs(model) == pytest.approx(published, rel=0.02)


def test_unknown_layers_with_kernels_are_named():
    class Own(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 2))

        def call(self, x):
            return x @ self.w

    with pytest.warns(UserWarning, match="not counted"):
        assert kc.profile.macs(sequential((3,), Own())) == 0


def test_open_shapes_and_models_without_graph_are_refused():
    with pytest.raises(ValueError, match="fixed shape"):
        kc.profile.macs(sequential((None, None, 3), layers.Conv2D(4, 3)))

    class Own(keras.Model):
        def call(self, x):
            return x

    model = Own()
    model(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="no graph"):
        kc.profile.macs(model)


def test_storage_bits_asks_the_layers_that_know():
    model = sequential((64,), kc.layers.TTDense(64, rank=2), layers.Dense(10))
    assert kc.profile.storage_bits(model) == 32 * model.count_params()
    half = sequential((64,), layers.Dense(10, dtype="float16"))
    assert kc.profile.storage_bits(half) == 16 * half.count_params()
