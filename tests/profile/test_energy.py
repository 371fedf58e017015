"""`energy`: by hand for one layer, and sane where layers and sparsity differ."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from keras_compress.profile import Hierarchy


def single(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    (row,) = kc.profile.energy(model).layers
    return model, row


def test_energy_of_a_1x1_convolution_by_hand():
    _, row = single(layers.Conv2D(40, 1), (10, 10, 30))
    # 12 channels and 224 // 12 = 18 filters in a PE; 12 sets of one row: ceil(30 / 12) = 3 for all
    # channels, 4 left for filters, of which ceil(40 / 18) = 3 are needed: inputs are read once,
    # sums go out and back once; 10 rows of output fit in 14 columns.
    inputs, weights, outputs, macs = 10 * 10 * 30, 30 * 40, 10 * 10 * 40, 10 * 10 * 30 * 40
    assert row.macs == macs
    assert row.accesses == {
        "register": 4 * macs,
        "array": inputs + weights + macs / 12,
        "buffer": 2 * inputs + 2 * weights + 2 * outputs,
        "dram": inputs + weights + outputs,
    }
    assert row.energy == pytest.approx(
        macs
        + 4 * macs
        + 2 * (inputs + weights + macs / 12)
        + 6 * 2 * (inputs + weights + outputs)
        + 200 * (inputs + weights + outputs)
    )


def test_passes_of_a_large_convolution_by_hand():
    _, row = single(layers.Conv2D(100, 3, padding="same"), (28, 28, 50))
    # 4 channels and 224 // 12 = 18 filters in a PE; 4 sets of three rows, all for channels: 13
    # groups of 4 channels in ceil(50 / 16) = 4 passes; ceil(100 / 18) = 6 reads of the inputs; 28
    # rows in two strips.
    inputs, weights, outputs = 28 * 28 * 50, 9 * 50 * 100, 28 * 28 * 100
    macs = 28 * 28 * weights
    delivered = 6 * inputs + 2 * weights
    assert row.accesses["array"] == pytest.approx(delivered + macs / (3 * 4))
    assert row.accesses["buffer"] == delivered + inputs + weights + 2 * 4 * outputs


@pytest.mark.parametrize(
    "layer,shape",
    [
        (layers.Dense(7), (3, 5)),
        (layers.Conv1D(6, 3, groups=2), (9, 4)),
        (layers.Conv3D(4, 2), (4, 5, 6, 2)),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 3)),
        (layers.SeparableConv2D(5, 3, strides=2), (8, 8, 3)),
        (layers.Conv2DTranspose(5, 3, strides=2), (8, 8, 3)),
        (layers.EinsumDense("abc,cde->abde", output_shape=(None, 3, 4)), (6, 5)),
        (layers.LSTM(5), (6, 4)),
        (layers.Bidirectional(layers.GRU(5)), (6, 4)),
        (layers.TimeDistributed(layers.Conv2D(4, 3)), (3, 6, 6, 2)),
    ],
)
def test_macs_are_those_of_profile_macs(layer, shape):
    layer = type(layer).from_config(layer.get_config())
    model, row = single(layer, shape)
    if isinstance(layer, layers.Conv2DTranspose):
        # Each weight once at each position of the input.
        assert row.macs == 8 * 8 * 9 * 3 * 5
    assert row.macs == kc.profile.macs(model)
    assert row.energy > row.macs


def test_macs_of_attention():
    query, value = keras.Input((6, 8)), keras.Input((5, 4))
    outputs = layers.MultiHeadAttention(2, 3, value_dim=5)(query, value)
    model = keras.Model([query, value], outputs)
    (row,) = kc.profile.energy(model).layers
    assert row.macs == kc.profile.macs(model)


def test_zeros_and_bits_lower_what_they_touch():
    model, row = single(layers.Conv2D(8, 3), (8, 8, 4))
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).copy()
    kernel.ravel()[::2] = 0
    model.layers[0].kernel.assign(kernel)
    (sparse,) = kc.profile.energy(model).layers
    assert sparse.macs == row.macs / 2
    saved = row.accesses["dram"] - sparse.accesses["dram"]
    assert saved == 9 * 4 * 8 / 2
    (narrow,) = kc.profile.energy(model, weight_bits=8, activation_bits=8).layers
    assert narrow.accesses == {k: v / 2 for k, v in sparse.accesses.items()}
    accesses = sum(
        cost * narrow.accesses[level]
        for level, cost in zip(("register", "array", "buffer", "dram"), (1, 2, 6, 200), strict=True)
    )
    assert narrow.energy == pytest.approx(sparse.macs / 4 + accesses)


def test_another_hierarchy_and_the_table():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="fc"), layers.ReLU()])
    free = kc.profile.energy(model, Hierarchy(register=0, array=0, buffer=0, dram=0))
    assert free.total == 12
    assert "fc" in str(kc.profile.energy(model)) and "100.0 %" in str(kc.profile.energy(model))
    with pytest.raises(ValueError, match="`hierarchy` must be one of 'eyeriss'"):
        kc.profile.energy(model, "tpu")
    with pytest.raises(ValueError, match="open shape"):
        kc.profile.energy(keras.Sequential([keras.Input((None, 4)), layers.Conv1D(3, 2)]))


def test_pointwise_layers_of_mobilenet_cost_dram_where_macs_say_little():
    # Yang et al.: MACs alone do not say where the energy goes.
    model = keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=10)
    rows = kc.profile.energy(model).layers
    by_macs = np.argsort([row.macs for row in rows])
    by_energy = np.argsort([row.energy for row in rows])
    assert (by_macs != by_energy).any()
    depthwise = next(row for row in rows if "depthwise" in row.name)
    pointwise = next(row for row in rows if "project" in row.name)
    assert depthwise.energy / depthwise.macs > 2 * pointwise.energy / pointwise.macs
