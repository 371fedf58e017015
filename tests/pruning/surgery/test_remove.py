"""Surgery on graphs of every kind: channels of zeros go, and the outputs stay."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_compress as kc
from keras_compress.pruning.costs import bytes_cost, macs_cost
from keras_compress.pruning.surgery import ChannelGraph, cut
from tests.pruning.surgery.common import half, outputs, randomize, samples, silence


def _conv(x, filters, size=3, **kwargs):
    return layers.Conv2D(filters, size, padding="same", **kwargs)(x)


def _image(shape=(8, 8, 3)):
    return keras.Input(shape)


def plain():
    x = inputs = _image()
    x = layers.BatchNormalization()(_conv(x, 8, activation="relu"))
    x = layers.MaxPooling2D()(layers.ZeroPadding2D()(_conv(x, 12)))
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.UpSampling2D()(layers.Cropping2D()(x))
    x = layers.Flatten()(layers.Dropout(0.5)(x))
    x = layers.Dense(10, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def prelu_of_positions():
    x = inputs = _image()
    x = layers.PReLU(alpha_initializer="uniform")(_conv(x, 8))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))


def depthwise():
    x = inputs = _image()
    x = _conv(x, 8)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.SeparableConv2D(6, 3, depth_multiplier=3, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def transposed():
    x = inputs = _image()
    x = layers.Conv2DTranspose(8, 3, strides=2, activation="relu")(x)
    x = layers.Conv2DTranspose(6, 3)(x)
    return keras.Model(inputs, _conv(x, 2))


def grouped():
    x = inputs = _image()
    x = _conv(x, 12)
    x = _conv(x, 16, groups=4, activation="relu")
    x = _conv(x, 16, groups=16)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def residual():
    x = inputs = _image()
    x = _conv(x, 8)
    y = _conv(_conv(x, 16, activation="relu"), 8)
    x = layers.Add()([x, y])
    x = x + _conv(x, 8, 1)
    x = layers.Concatenate()([x, _conv(x, 4)])
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def squeeze_excite():
    x = inputs = _image()
    x = _conv(x, 8, activation="relu")
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Reshape((1, 1, 8))(gate)
    gate = _conv(gate, 4, 1, activation="relu")
    gate = _conv(gate, 8, 1, activation="sigmoid")
    x = layers.Multiply()([x, gate])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def shuffled():
    x = inputs = _image()
    x = _conv(x, 12)
    x = layers.Reshape((8, 8, 3, 4))(x)
    x = layers.Permute((1, 2, 4, 3))(x)
    x = ops.reshape(x, (-1, 8, 8, 12))
    x = _conv(x, 6, groups=3)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def split_and_gated():
    x = inputs = _image()
    left, right = ops.split(_conv(x, 16), 2, axis=-1)
    x = left * ops.sigmoid(right)
    x = ops.concatenate([x, ops.relu(_conv(x, 6))], axis=-1)
    x = ops.mean(x, axis=(1, 2))
    return keras.Model(inputs, layers.Dense(3)(x))


def padded_shortcut():
    x = inputs = _image()
    x = _conv(x, 4)
    y = _conv(x, 8, strides=2)
    short = ops.pad(layers.AveragePooling2D(2)(x), ((0, 0), (0, 0), (0, 0), (2, 2)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(y + short)))


def shared():
    first, second = _image(), _image()
    twice = layers.Conv2D(8, 3, padding="same", name="twice")
    again = layers.Conv2D(8, 3, padding="same", name="again")
    a, b = again(twice(first)), twice(second)
    x = layers.Concatenate()([layers.GlobalMaxPooling2D()(a), layers.GlobalMaxPooling2D()(b)])
    return keras.Model([first, second], layers.Dense(3)(x))


def nested():
    inner = keras.Sequential(
        [_image((8, 8, 6)), layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization()],
        name="inner",
    )
    entry = _image((8, 8, 8))
    block = keras.Model(entry, layers.Add()([entry, _conv(entry, 8)]), name="block")
    x = inputs = _image()
    x = block(inner(_conv(x, 6)))
    x = layers.Add()([block(x), x])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def sequential():
    return keras.Sequential(
        [
            _image(),
            keras.Sequential([layers.Conv2D(8, 3), layers.ReLU()]),
            layers.Conv2D(6, 3),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def channels_first():
    # Keras 3.15 adds a bias along the width if that is as large as the number of filters.
    x = inputs = keras.Input((3, 9, 10))
    x = layers.DepthwiseConv2D(1, data_format="channels_first")(
        layers.Conv2D(8, 1, data_format="channels_first")(x)
    )
    x = layers.BatchNormalization(axis=1)(x)
    x = layers.Flatten(data_format="channels_first")(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def one_dimensional():
    x = inputs = keras.Input((12, 4))
    x = layers.Conv1D(8, 3, activation="relu")(x)
    x = layers.SeparableConv1D(8, 3)(layers.MaxPooling1D()(x))
    x = layers.LSTM(5)(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def transformer():
    x = inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(8, 16)(x)
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 3, name="attention")(y, y)])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(16)(layers.Dense(32, activation="gelu")(y))
    x = layers.Add()([x, y])
    return keras.Model(inputs, layers.Dense(3)(x[:, 0]))


def attention_by_hand():
    x = inputs = keras.Input((6, 8))
    q, k, v = (layers.EinsumDense("abc,cde->abde", (6, 4, 6), bias_axes="de")(x) for _ in "qkv")
    q, k, v = (ops.transpose(t, (0, 2, 1, 3)) for t in (q, k, v))
    scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / 2.0)
    x = ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3))
    x = layers.EinsumDense("abde,dec->abc", (6, 8), bias_axes="c")(x)
    return keras.Model(inputs, layers.Dense(3)(ops.mean(x, axis=1)))


def two_outputs():
    x = inputs = _image()
    x = _conv(x, 8, activation="relu")
    map_ = _conv(x, 4)
    return keras.Model(inputs, {"map": map_, "label": layers.Dense(2)(layers.Flatten()(x))})


GRAPHS = [
    plain,
    prelu_of_positions,
    depthwise,
    transposed,
    grouped,
    residual,
    squeeze_excite,
    shuffled,
    split_and_gated,
    padded_shortcut,
    shared,
    nested,
    sequential,
    channels_first,
    one_dimensional,
    transformer,
    attention_by_hand,
    two_outputs,
]
if keras.backend.backend() != "tensorflow":
    # Surgery is numpy and the same everywhere; another backend compiles each new shape for long.
    GRAPHS = [residual, nested]


@pytest.mark.parametrize("build", GRAPHS)
def test_silent_channels_go_without_a_trace(build):
    model = randomize(build())
    graph = ChannelGraph(model)
    assert not graph.unknown
    kept = half(graph)
    silence(graph, kept)
    x = samples(model)
    expected = outputs(model, x)
    small = cut(graph, kept)
    for one, other in zip(expected, outputs(small, x), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert small.count_params() < 0.85 * model.count_params()
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("build", GRAPHS)
def test_costs_are_those_of_the_pruned_model(build):
    model = build()
    graph = ChannelGraph(model)
    kept = half(graph)
    small = cut(graph, kept)
    assert macs_cost(graph)(kept) == pytest.approx(kc.profile.macs(small))
    assert macs_cost(graph)(np.ones(graph.count, bool)) == pytest.approx(kc.profile.macs(model))
    sizes = sum(int(np.prod(w.shape)) for w in small.weights)
    assert bytes_cost(graph)(kept) == 4 * sizes


@pytest.mark.parametrize("build", [plain, residual, nested, transformer])
def test_result_is_an_ordinary_model(build, tmp_path):
    model = build()
    model.compile("adam", "mse")
    small = kc.pruning.prune_channels(model, "l1", 0.5)
    assert small.compiled and type(small) is type(model)
    x = samples(model, 4)
    y = outputs(small, x)[0]
    small.fit(x, y, epochs=1, verbose=0)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(outputs(again, x)[0], outputs(small, x)[0], atol=1e-6)


def test_original_is_left_alone():
    model = plain()
    before = model.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    kc.pruning.prune_channels(model, "l1", 0.5)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]


def test_groups_follow_the_graph_not_the_names():
    groups = {group.name: len(group) for group in ChannelGraph(residual()).groups}
    assert sorted(groups.values()) == [4, 8, 16]
    assert max(name.count("+") for name in groups) == 2


def test_attention_loses_whole_heads():
    small = kc.pruning.remove_channels(transformer(), {"attention/heads": [0, 3]})
    assert small.get_layer("attention").num_heads == 2
    assert small.get_layer("attention").key_dim == 3


def test_training_flags_of_calls_are_kept():
    x = inputs = _image()
    x = layers.BatchNormalization(name="frozen")(_conv(x, 8), training=True)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    small = kc.pruning.prune_channels(model, "l1", 0.5)
    image = samples(model, 4)
    normal = keras.Model(small.input, small.get_layer("frozen").output)
    given = keras.ops.convert_to_numpy(normal(image))
    np.testing.assert_allclose(given.mean((0, 1, 2)), 0, atol=1e-3)


class Mystery(layers.Layer):
    def call(self, inputs):
        return inputs * ops.arange(1.0, 9.0)


def _with_mystery():
    x = inputs = _image()
    x = Mystery(name="mystery")(_conv(x, 8, name="before"))
    x = _conv(x, 8, name="after")
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def test_unknown_layer_is_kept_whole_with_a_warning():
    model = _with_mystery()
    with pytest.warns(UserWarning, match="'mystery'"):
        small = kc.pruning.prune_channels(model, "l1", 0.5)
    assert small.get_layer("before").filters == 8
    assert small.get_layer("after").filters == 4


def test_layer_of_the_user_is_taught():
    class Scaled(layers.Layer):
        def __init__(self, width, **kwargs):
            super().__init__(**kwargs)
            self.width = width

        def build(self, shape):
            self.factor = self.add_weight(shape=(self.width,), initializer="ones")

        def call(self, inputs):
            return inputs * self.factor

        def get_config(self):
            return {**super().get_config(), "width": self.width}

    kc.pruning.register_channel_rule(
        Scaled, "scale", lambda layer, shape: {"width": shape(layer.factor)[0]}
    )
    x = inputs = _image()
    x = Scaled(8, name="scaled")(_conv(x, 8))
    model = randomize(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    graph = ChannelGraph(model)
    kept = half(graph)
    silence(graph, kept)
    expected = outputs(model, samples(model))
    small = cut(graph, kept)
    np.testing.assert_allclose(outputs(small, samples(model))[0], expected[0], atol=1e-5)
    assert small.get_layer("scaled").width == 4


def test_quantized_layer_is_kept_whole():
    model = plain()
    next(layer for layer in model.layers if isinstance(layer, layers.Dense)).quantize("int8")
    with pytest.warns(UserWarning, match="dense"):
        graph = ChannelGraph(model)
    assert not any("dense" in group.name for group in graph.groups)


def test_keep_says_what_is_wrong():
    model = residual()
    names = [layer.name for layer in model.layers if isinstance(layer, layers.Conv2D)]
    with pytest.raises(ValueError, match="no layer 'conv'.*Did you mean"):
        kc.pruning.remove_channels(model, {"conv": [0]})
    with pytest.raises(ValueError, match="indices from 0 to 7"):
        kc.pruning.remove_channels(model, {names[0]: [8]})
    with pytest.raises(ValueError, match="indices from 0 to 7, at least one"):
        kc.pruning.remove_channels(model, {names[0]: []})
    with pytest.raises(ValueError, match="disagree"):
        kc.pruning.remove_channels(model, {names[0]: [0, 1], names[2]: [2, 3]})
    with pytest.raises(ValueError, match="must stay would go"):
        kc.pruning.remove_channels(model, {model.layers[-1].name: [0]})


def test_model_without_a_graph_is_refused():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="subclassed"):
        kc.pruning.prune_channels(Subclassed(), "l1", 0.5)
    with pytest.raises(ValueError, match="not built"):
        kc.pruning.prune_channels(keras.Sequential([layers.Dense(3)]), "l1", 0.5)
    with pytest.raises(ValueError, match="takes a keras.Model"):
        kc.pruning.prune_channels("model", "l1", 0.5)


def test_masked_model_is_refused():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(2)])
    model.compile("sgd", "mse")
    pruning = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5))
    model.fit(np.ones((4, 8)), np.ones((4, 2)), callbacks=[pruning], verbose=0)
    with pytest.raises(ValueError, match=r"mask.*kc.pruning.strip"):
        kc.pruning.prune_channels(model, "l1", 0.5)
