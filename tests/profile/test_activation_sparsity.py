"""Zeros that reach each layer, against counts of its inputs and of `relu_sparse_conv2d`."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from keras_compress.profile.macs import call_macs

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((9, 9, 2))
    x = layers.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="second")(x)
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise")(x)
    x = layers.Conv2D(4, 1, groups=2, name="grouped")(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(3, name="fc")(layers.Flatten()(x)))


def inputs_of(model, name, x):
    before = keras.Model(model.inputs, model.get_layer(name).input)
    return before.predict(x, verbose=0)


def test_zeros_and_skipped_macs_of_every_layer(model):
    x = RNG.normal(size=(5, 9, 9, 2)).astype("float32")
    sparsity = kc.profile.activation_sparsity(model, x, batch_size=2)
    rows = {row.name: row for row in sparsity.layers}
    assert list(rows) == ["first", "second", "depthwise", "grouped", "fc"]
    for name, row in rows.items():
        zeros = float((inputs_of(model, name, x) == 0).mean())
        assert row.zeros == pytest.approx(zeros), name
    assert rows["first"].zeros == 0 and rows["first"].skipped == 0
    assert 0.1 < rows["second"].zeros < 0.9
    # Not every input of a strided layer is read as often as others.
    values = inputs_of(model, "second", x)
    kernel = keras.ops.convert_to_numpy(model.get_layer("second").kernel)
    _, axpys = kc.sparse.relu_sparse_conv2d(values, kernel, 2, "same")
    _, every = kc.sparse.relu_sparse_conv2d(np.ones_like(values), kernel, 2, "same")
    assert rows["second"].skipped == pytest.approx(1 - axpys / every)
    assert rows["second"].macs == every // 5 * 6
    assert rows["fc"].skipped == pytest.approx(rows["fc"].zeros)


def test_macs_without_padding_are_those_of_the_profile(model):
    sparsity = kc.profile.activation_sparsity(model, np.ones((1, 9, 9, 2)))
    calls = {call.layer.name: call for call in kc.profile.layer_calls(model)}
    for row in sparsity.layers:
        if row.name != "second":
            assert row.macs == call_macs(calls[row.name]), row.name
    total = sum(row.skipped * row.macs for row in sparsity.layers)
    assert sparsity.skipped == pytest.approx(total / sum(row.macs for row in sparsity.layers))
    assert str(sparsity).splitlines()[-1].split()[0] == "all"


def test_channels_first_counts_alike():
    last = layers.Conv2D(3, 3, strides=2)
    first = layers.Conv2D(3, 3, strides=2, data_format="channels_first")
    x = np.maximum(RNG.normal(size=(4, 7, 8, 2)), 0).astype("float32")
    rows = []
    # Neither runs: only what comes before a layer is computed.
    for shape, layer, data in [((7, 8, 2), last, x), ((2, 7, 8), first, x.transpose(0, 3, 1, 2))]:
        inputs = keras.Input(shape)
        model = keras.Model(inputs, layer(inputs))
        rows.append(kc.profile.activation_sparsity(model, data).layers[0])
    assert rows[0].skipped == pytest.approx(rows[1].skipped) and rows[0].macs == rows[1].macs


def test_models_without_such_layers_and_open_sizes_are_refused():
    inputs = keras.Input((None, 5, 2))
    with pytest.raises(ValueError, match="has no Dense, Conv2D or DepthwiseConv2D layer"):
        kc.profile.activation_sparsity(
            keras.Model(inputs, layers.ReLU()(inputs)), np.ones((1, 5, 5, 2))
        )
    with pytest.raises(ValueError, match="has an open input shape"):
        kc.profile.activation_sparsity(
            keras.Model(inputs, layers.Conv2D(2, 3)(inputs)), np.ones((1, 5, 5, 2))
        )
