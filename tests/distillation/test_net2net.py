"""Net2Net: wider and deeper models against the models that they come from."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_compress as kc
from keras_compress.pruning.surgery import ChannelGraph
from tests.pruning.surgery import test_remove as graphs
from tests.pruning.surgery.common import outputs, randomize, samples

# Each has something that lays copies out, or shares weights out, in a way of its own.
GRAPHS = [
    graphs.plain,
    graphs.depthwise,
    graphs.grouped,
    graphs.residual,
    graphs.squeeze_excite,
    graphs.shuffled,
    graphs.split_and_gated,
    graphs.shared,
    graphs.channels_first,
    graphs.transformer,
]
RNG = np.random.default_rng(0)


def image(*values):
    return RNG.normal(size=values).astype("float32")


def assert_same(model, new):
    x = samples(model)
    for before, after in zip(outputs(model, x), outputs(new, x), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)


def dense(activation="relu", units=5):
    keras.utils.set_random_seed(2)
    return randomize(
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(units, activation=activation, name="hidden"),
                layers.Dense(3, name="logits"),
            ]
        )
    )


def residual_with_flatten():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="wide")(x)
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", name="narrow")(y))
    x = layers.Add()([x, y])
    x = layers.Concatenate()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
    return randomize(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))


@pytest.mark.parametrize("make", GRAPHS, ids=[make.__name__ for make in GRAPHS])
def test_net2wider_outputs_are_equal_whatever_the_graph(make):
    """Dense, conv, BN, flatten, concat, adds, gates, groups, reshapes, heads, nested models."""
    keras.utils.set_random_seed(1)
    model = randomize(make())
    graph = ChannelGraph(model)
    names = [p.name for p in graph.producers if graph.copiable[p.channels].any()]
    new = model
    # One layer on top of the other: every one of them is wider at the end.
    for name in dict.fromkeys(names):
        graph = ChannelGraph(new)
        (producer,) = [p for p in graph.producers if p.name == name][-1:]
        free = producer.channels[graph.copiable[producer.channels]]
        if len(free):
            step = np.unique(free, return_counts=True)[1].max()
            new = kc.distillation.net2wider(new, name, len(producer.channels) + 3 * step, seed=3)
    assert names and new.count_params() > model.count_params()
    assert_same(model, new)


def test_net2wider_is_the_papers_formula():
    """U[:, j] = W[:, g(j)], V[j] = W'[g(j)] / |{k: g(k) = g(j)}|."""
    model = dense()
    wide = kc.distillation.net2wider(model, "hidden", 12, seed=1)
    kernel, bias, readers = (ops.convert_to_numpy(v) for v in model.variables[:3])
    new_kernel, new_bias, new_readers = (ops.convert_to_numpy(v) for v in wide.variables[:3])
    g = [np.flatnonzero((column == kernel.T).all(1)).item() for column in new_kernel.T]
    assert set(g) == set(range(5)) and len(g) == 12
    np.testing.assert_array_equal(new_bias, bias[g])
    counts = np.bincount(g)[g]
    np.testing.assert_allclose(new_readers, readers[g] / counts[:, None], rtol=1e-6)


def test_net2wider_widens_the_whole_residual_group():
    model = residual_with_flatten()
    wide = kc.distillation.net2wider(model, "narrow", 7)
    assert [wide.get_layer(name).filters for name in ("stem", "wide", "narrow")] == [7, 8, 7]
    assert_same(model, wide)
    assert model.get_layer("stem").filters == 4


def test_net2wider_keeps_batch_statistics_in_training():
    model = residual_with_flatten()
    wide = kc.distillation.net2wider(model, "stem", 6)
    x = image(4, 6, 6, 3)
    np.testing.assert_allclose(wide(x, training=True), model(x, training=True), atol=1e-5)


def test_net2wider_outputs_of_a_depthwise_layer_are_copied_together():
    model = randomize(graphs.depthwise())
    wide = kc.distillation.net2wider(model, model.layers[1], 13, seed=2)
    # Two outputs for each channel.
    assert wide.layers[3].gamma.shape == (26,)
    assert_same(model, wide)


def test_net2wider_noise_breaks_symmetry():
    """Without noise twins get the same gradients for ever."""

    def kernels(noise):
        wide = kc.distillation.net2wider(dense("tanh"), "hidden", 10, noise, seed=5)
        before = ops.convert_to_numpy(wide.layers[0].kernel)
        readers = ops.convert_to_numpy(wide.layers[1].kernel)
        wide.compile(keras.optimizers.SGD(0.1), "mse")
        rng = np.random.default_rng(1)
        wide.train_on_batch(rng.normal(size=(8, 6)), rng.normal(size=(8, 3)))
        # Gradients of the rows that read them.
        gradients = ops.convert_to_numpy(wide.layers[1].kernel) - readers
        return before, gradients

    before, plain = kernels(0.0)
    same = [(i, j) for i in range(10) for j in range(i) if (before[:, i] == before[:, j]).all()]
    assert len(same) >= 5
    noisy_before, noisy = kernels(0.1)
    for i, j in same:
        np.testing.assert_allclose(plain[i], plain[j], atol=1e-7)
        assert np.abs(noisy[i] - noisy[j]).max() > 1e-5
    # Only copies are noisy, and only so much.
    difference = noisy_before - before
    assert (np.abs(difference).max(0) == 0).sum() == 5
    assert 0.05 < difference[difference != 0].std() / before.std() < 0.2


def test_net2wider_same_seed_same_model():
    first, second, third = (
        kc.distillation.net2wider(dense(), "hidden", 9, 0.1, seed=s).get_weights()[0]
        for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


def test_net2wider_refuses_what_it_cannot_do():
    model = dense()
    with pytest.raises(ValueError, match="more than the 5 channels of 'hidden'; got new_width=5"):
        kc.distillation.net2wider(model, "hidden", 5)
    with pytest.raises(ValueError, match="Did you mean 'hidden'"):
        kc.distillation.net2wider(model, "hiden", 9)
    with pytest.raises(ValueError, match="'logits' can be copied: they are outputs of the model"):
        kc.distillation.net2wider(model, "logits", 9)
    with pytest.raises(ValueError, match="noise"):
        kc.distillation.net2wider(model, "hidden", 9, -1.0)
    x = inputs = keras.Input((4, 6))
    x = layers.LayerNormalization()(layers.Dense(5, name="normalized")(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    with pytest.raises(ValueError, match="normalizes over them"):
        kc.distillation.net2wider(model, "normalized", 9)
    with pytest.raises(ValueError, match="multiplies them by other"):
        # Queries and keys: the product of two activations sums over their channels.
        model = graphs.attention_by_hand()
        kc.distillation.net2wider(model, model.layers[1], 9)
    x = inputs = keras.Input((6, 6, 4))
    x = kc.layers.ChannelShuffle(2)(layers.Conv2D(8, 1, name="shuffled")(x))
    with pytest.raises(ValueError, match="orders them in several ways"):
        kc.distillation.net2wider(keras.Model(inputs, layers.Conv2D(3, 1)(x)), "shuffled", 10)
    x = inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 1, groups=2, name="alike")(x)
    model = keras.Model(inputs, layers.Conv2D(8, 1, groups=2)(x)[:, 0, 0])
    with pytest.raises(ValueError, match="or what reads|outputs of the model"):
        kc.distillation.net2wider(model, model.layers[2], 9)
    with pytest.raises(ValueError, match="multiple of 2"):
        kc.distillation.net2wider(model, "alike", 9)


def test_net2wider_and_net2deeper_compile_like_the_model():
    model = dense()
    model.compile(keras.optimizers.SGD(0.25), "mse")
    wide = kc.distillation.net2wider(model, "hidden", 8)
    deep = kc.distillation.net2deeper(wide, "hidden")
    assert deep.optimizer.learning_rate == 0.25 and deep.loss == "mse"
    assert deep.get_layer("hidden_deeper").units == 8
    assert_same(model, deep)


CHAINS = {
    "dense": ((6,), [layers.Dense(5, activation="relu6", name="x")]),
    "strided-grouped-even": (
        (7, 6, 4),
        [layers.Conv2D(6, (4, 2), strides=2, groups=2, activation="relu", name="x")],
    ),
    "dilated-linear": ((9, 9, 2), [layers.Conv2D(4, 3, dilation_rate=2, name="x")]),
    "causal": ((9, 2), [layers.Conv1D(4, 3, padding="causal", activation="relu", name="x")]),
    "one-bn-relu": (
        (7, 6, 4),
        [
            layers.Conv2D(6, 3, use_bias=False, name="x"),
            layers.BatchNormalization(),
            layers.ReLU(max_value=2.0),
        ],
    ),
    "bn-after-relu": (
        (7, 6, 4),
        [
            layers.Conv2D(6, 3, activation="relu", name="x"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
        ],
    ),
    "bn-without-scale": (
        (7, 6, 4),
        [layers.Conv2D(6, 3, name="x"), layers.BatchNormalization(scale=False, epsilon=0.1)],
    ),
    "bn-without-center": (
        (6,),
        [layers.Dense(5, name="x"), layers.BatchNormalization(center=False, renorm=True)],
    ),
    "volume": ((4, 4, 4, 2), [layers.Conv3D(3, 2, activation="relu", name="x")]),
}


@pytest.mark.parametrize(
    "name, with_data",
    [(name, False) for name in CHAINS] + [(n, True) for n in CHAINS if n.startswith("bn-without")],
)
def test_net2deeper_outputs_are_equal(name, with_data):
    shape, chain = CHAINS[name]
    chain = [type(layer).from_config(layer.get_config()) for layer in chain]
    model = randomize(keras.Sequential([keras.Input(shape), *chain]))
    data = image(16, *shape) if with_data else None
    deep = kc.distillation.net2deeper(model, "x", data)
    assert len(deep.layers) > len(model.layers)
    assert deep.get_layer("x_deeper").kernel.shape[-1] == model.get_layer("x").kernel.shape[-1]
    assert_same(model, deep)


def test_net2deeper_every_place_of_a_functional_graph():
    model = residual_with_flatten()
    deep = model
    for name in ("stem", "wide", "narrow"):
        deep = kc.distillation.net2deeper(deep, name)
    # It comes before the addition, in the branch of its own.
    assert deep.count_params() > model.count_params()
    assert_same(model, deep)
    model = randomize(graphs.nested())
    inner = model.get_layer("inner").layers[0].name
    deep = kc.distillation.net2deeper(model, f"inner/{inner}")
    assert len(deep.get_layer("inner").layers) == 4
    assert_same(model, deep)


def test_net2deeper_relu_of_keras_ops():
    x = inputs = keras.Input((6, 6, 3))
    x = ops.relu(layers.Conv2D(4, 3, name="x")(x))
    model = randomize(keras.Model(inputs, layers.GlobalMaxPooling2D()(x)))
    deep = kc.distillation.net2deeper(model, "x")
    assert [type(op).__name__ for op in deep.operations].count("Relu") == 2
    assert_same(model, deep)


@pytest.mark.parametrize("axis", [-1, 1])
def test_net2deeper_with_data_batch_normalization_undoes_the_batch_statistics(axis):
    data_format = "channels_last" if axis == -1 else "channels_first"
    model = randomize(
        keras.Sequential(
            [
                keras.Input((5, 8, 9)),
                layers.Conv2D(4, 1, data_format=data_format, name="x"),
                layers.BatchNormalization(axis=axis),
                layers.ReLU(),
            ]
        )
    )
    data = image(64, 5, 8, 9)
    deep = kc.distillation.net2deeper(model, "x", data, batch_size=24)
    norm = deep.get_layer("x_deeper"), deep.layers[-2]
    assert isinstance(norm[1], layers.BatchNormalization)
    hidden = ops.convert_to_numpy(model(data))
    seen = tuple(a for a in range(4) if a != axis % 4)
    np.testing.assert_allclose(norm[1].moving_mean, hidden.mean(seen), atol=1e-5)
    np.testing.assert_allclose(norm[1].moving_variance, hidden.var(seen), atol=1e-4)
    # What training starts with.
    np.testing.assert_allclose(norm[1](hidden, training=True), hidden, atol=1e-4)


def scaled_relu(x):
    return 0.5 * ops.relu(x)


@pytest.mark.parametrize(
    "activation", ["tanh", "softmax", "leaky_relu", "gelu", scaled_relu, layers.ELU()]
)
def test_net2deeper_refuses_activations_that_are_not_idempotent(activation):
    with pytest.raises(ValueError, match=r"activation of 'hidden' is not idempotent"):
        kc.distillation.net2deeper(dense(activation), "hidden")


def test_net2deeper_refuses_what_it_cannot_do():
    model = dense()
    with pytest.raises(ValueError, match="no layer 'hiden'. Did you mean 'hidden'"):
        kc.distillation.net2deeper(model, "hiden")
    x = inputs = keras.Input((6, 6, 4))
    relu = layers.ReLU(name="relu")
    x = relu(layers.Conv2D(4, 3, name="first")(x))
    x = relu(layers.DepthwiseConv2D(3, name="depthwise")(x))
    x = layers.PReLU(name="prelu")(layers.Conv2D(4, 1, name="second")(x))
    model = keras.Model(inputs, x)
    with pytest.raises(ValueError, match="'relu' runs 2 times"):
        kc.distillation.net2deeper(model, "first")
    with pytest.raises(ValueError, match="'depthwise' is a DepthwiseConv2D"):
        kc.distillation.net2deeper(model, "depthwise")
    with pytest.raises(ValueError, match="activation of 'prelu' is not idempotent"):
        kc.distillation.net2deeper(model, "second")
    x = inputs = keras.Input((6,))
    x = kc.layers.ShiftBatchNormalization()(layers.Dense(4, name="shift")(x))
    with pytest.raises(ValueError, match="is a ShiftBatchNormalization"):
        kc.distillation.net2deeper(keras.Model(inputs, x), "shift")
