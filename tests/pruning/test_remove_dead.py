"""`remove_dead` and `remove_zero_groups`: what is always the same goes, and the outputs stay."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_compress as kc
from keras_compress.pruning.surgery import ChannelGraph, cut
from tests.pruning.surgery.common import half, outputs, randomize, samples, silence

remove_dead = kc.pruning.remove_dead
remove_zero_groups = kc.pruning.remove_zero_groups
RNG = np.random.default_rng(0)


def change(layer, **functions):
    """Lets functions act on arrays of a layer's weights, in place."""
    for name, function in functions.items():
        variable = getattr(layer, name)
        array = keras.ops.convert_to_numpy(variable).copy()
        function(array)
        variable.assign(array)


def zero(*index):
    def set_zero(array):
        array[index] = 0

    return set_zero


def whole_numbers(model):
    """Small whole numbers in the place of all weights: sums are then exact in any order."""
    for variable in model.weights:
        variable.assign(RNG.integers(-3, 4, variable.shape))
    return model


def compare(model, small, exactly=False, atol=1e-5):
    x = samples(model, 4)
    if exactly:
        x = np.round(4 * x)
    for a, b in zip(outputs(model, x), outputs(small, x), strict=True):
        if exactly:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def dense_net(*units):
    parts = [layers.Dense(n, activation="relu", name=f"d{i}") for i, n in enumerate(units[1:])]
    return keras.Sequential([keras.Input((units[0],)), *parts])


def test_han_outputs_are_bitwise_equal_without_dead_neurons():
    model = whole_numbers(dense_net(9, 8, 7, 4))
    first, second, last = model.layers
    # Without outputs; without inputs, with a bias of zero; with one.
    change(second, kernel=zero(slice(0, 2)))
    change(first, kernel=zero(slice(None), slice(2, 4)), bias=zero(slice(2, 3)))
    before = model.get_weights()
    small = remove_dead(model)
    assert [layer.units for layer in small.layers] == [4, 7, 4]
    compare(model, small, exactly=True)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_han_constants_go_into_the_biases_that_read_them():
    model = randomize(dense_net(9, 8, 7, 4))
    first, second, _ = model.layers
    change(first, kernel=zero(slice(None), slice(0, 3)))
    small = remove_dead(model)
    bias = keras.ops.convert_to_numpy(first.bias)[:3]
    expected = second.get_weights()[1] + np.maximum(bias, 0) @ second.get_weights()[0][:3]
    np.testing.assert_allclose(small.layers[1].get_weights()[1], expected, rtol=1e-6)
    np.testing.assert_array_equal(small.layers[1].get_weights()[0], second.get_weights()[0][3:])
    compare(model, small)


def brute_force(model):
    """Neurons of each hidden layer of a dense net that some input-dependent path goes through."""
    kernels = [layer.get_weights()[0] != 0 for layer in model.layers]
    reached = [np.ones(len(kernels[0]), bool)]
    for kernel in kernels:
        reached.append(kernel[reached[-1]].any(0))
    needed = [np.ones(kernels[-1].shape[1], bool)]
    for kernel in kernels[::-1]:
        needed.insert(0, kernel[:, needed[0]].any(1))
    return [max(1, int((r & n).sum())) for r, n in zip(reached, needed, strict=True)][1:-1]


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_in_a_sparse_net_is_on_a_path_from_inputs_to_outputs(seed):
    rng = np.random.default_rng(seed)
    model = randomize(dense_net(6, 10, 10, 10, 3), seed)
    for layer in model.layers:
        layer.kernel.assign(layer.get_weights()[0] * (rng.random(layer.kernel.shape) < 0.12))
    small = remove_dead(model)
    assert [layer.units for layer in small.layers[:-1]] == brute_force(model)
    compare(model, small)


def conv(filters, size=3, **kwargs):
    return layers.Conv2D(filters, size, padding="same", **kwargs)


def image_net(*parts):
    return randomize(keras.Sequential([keras.Input((8, 8, 3)), *parts]))


def test_constants_behind_normalisation_activation_and_pooling():
    first = layers.Conv2D(6, 3, name="first")
    model = image_net(
        first,
        layers.BatchNormalization(),
        layers.ELU(),
        layers.MaxPooling2D(2),
        layers.DepthwiseConv2D(2),
        layers.SeparableConv2D(5, 1, name="next", use_bias=False),
        layers.Flatten(),
        layers.Dense(3),
    )
    change(first, kernel=zero(..., slice(2, 5)))
    small = remove_dead(model)
    assert small.get_layer("first").filters == 3 and small.get_layer("next").use_bias
    compare(model, small)


def test_constants_that_padding_makes_uneven_stay():
    first = layers.Conv2D(6, 3, name="first")
    model = image_net(first, conv(4), layers.GlobalAveragePooling2D())
    change(first, kernel=zero(..., slice(2, 5)), bias=zero(2))
    small = remove_dead(model)
    # The one without a bias goes.
    assert small.get_layer("first").filters == 5
    compare(model, small)
    # Of maps that are constant at each place, a dense layer reads nothing but constants.
    model = image_net(first := conv(6), conv(4), layers.Flatten(), layers.Dense(2, name="out"))
    change(first, kernel=zero(...))
    small = remove_dead(model)
    assert small.get_layer("out").kernel.shape[0] == 64
    compare(model, small)


@pytest.mark.parametrize("shape", [(8, 8, 3), (None, None, 3)])
def test_open_sizes(shape):
    model = keras.Sequential(
        [keras.Input(shape), conv(6, name="first"), layers.ReLU(), conv(4), conv(2, 1)]
    )
    randomize(model)
    change(model.layers[0], kernel=zero(..., slice(0, 3)), bias=zero(slice(0, 2)))
    small = remove_dead(model)
    assert small.layers[0].filters == 4
    x = RNG.normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(outputs(model, x)[0], outputs(small, x)[0], atol=1e-5)


def test_channels_that_are_tied_go_together_only():
    inputs = keras.Input((8, 8, 3))
    x = conv(6, name="stem")(inputs)
    y = conv(6, name="branch", use_bias=False)(conv(5, activation="relu", name="inner")(x))
    x = layers.Add()([x, y])
    x = layers.Multiply()([x, layers.Dense(6, activation="sigmoid", name="gate")(x)])
    model = randomize(keras.Model(inputs, conv(4, name="last")(x)))
    change(model.get_layer("stem"), kernel=zero(..., slice(0, 3)), bias=zero(slice(0, 3)))
    change(model.get_layer("branch"), kernel=zero(..., slice(2, 4)))
    change(model.get_layer("inner"), kernel=zero(slice(None), slice(None), 2))
    small = remove_dead(model)
    # Channel 2 is zero on both sides: the product with its gate is, too.
    assert small.get_layer("stem").filters == small.get_layer("gate").units == 5
    compare(model, small)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_grouped_convolutions(groups):
    model = image_net(
        conv(8, name="first"),
        conv(8, groups=groups, name="grouped"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
    )
    # Groups must stay alike: channel 1 of each of the two.
    change(model.layers[0], kernel=zero(..., slice(1, 8, 4)), bias=zero(slice(1, 8, 4)))
    small = remove_dead(model)
    assert small.get_layer("first").filters == 6
    compare(model, small)


def test_attention_recurrence_and_operations():
    inputs = keras.Input((6, 4))
    x = layers.Dense(8, name="first")(inputs)
    y = layers.MultiHeadAttention(2, 4)(x, x)
    x = ops.relu(layers.Dense(5, activation="tanh", name="second")(x + y)) * 0.5
    model = randomize(keras.Model(inputs, layers.LSTM(3)(x)))
    change(model.get_layer("second"), kernel=zero(..., slice(1, 3)), bias=zero(slice(1, 2)))
    small = remove_dead(model)
    # A constant cannot go into a recurrent layer.
    assert small.get_layer("second").units == 4 and small.get_layer("first").units == 8
    compare(model, small)
    change(model.layers[-1].cell, kernel=zero(slice(0, 1)))
    assert remove_dead(model).get_layer("second").units == 3


def test_normalised_channels_and_mixing_activations_stay():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, name="first"),
            layers.LayerNormalization(),
            layers.Dense(4, activation="softmax", name="second"),
            layers.Dense(2),
        ]
    )
    randomize(model)
    for layer in (model.layers[0], model.layers[2]):
        change(layer, kernel=zero(..., 0), bias=zero(0))
    small = remove_dead(model)
    assert [small.layers[i].units for i in (0, 2)] == [5, 4]


def test_a_shared_layer_takes_a_constant_only_if_all_its_calls_do():
    inputs = keras.Input((4,))
    parts = [layers.Dense(3, name=f"part{i}") for i in range(2)]
    shared = layers.Dense(2, use_bias=False, name="shared")
    model = keras.Model(inputs, [shared(part(inputs)) for part in parts])
    randomize(model)
    for part in parts:
        change(part, kernel=zero(..., slice(0, 2)))
    parts[0].bias.assign([1.0, 2.0, 0.0])
    parts[1].bias.assign([1.0, 3.0, 0.0])
    small = remove_dead(model)
    assert [small.get_layer(part.name).units for part in parts] == [2, 2]
    compare(model, small)


def test_maxout_layers():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            kc.layers.MaxoutConv2D(6, 3, name="first"),
            layers.Flatten(),
            kc.layers.MaxoutDense(5, name="second"),
            layers.Dense(2),
        ]
    )
    change(model.layers[0], kernel=zero(..., slice(0, 2), slice(None)))
    # One piece alone depends on its input.
    change(model.layers[0], kernel=zero(..., 2, 0))
    small = remove_dead(model)
    assert small.layers[0].filters == 4
    compare(model, small)


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50"])
def test_applications_with_silent_channels(name):
    model = getattr(keras.applications, name)((32, 32, 3), weights=None, classes=3)
    graph = ChannelGraph(randomize(model))
    kept = half(graph)
    silence(graph, kept)
    small = remove_dead(model)
    assert small.count_params() == cut(graph, kept).count_params()
    compare(model, small)


# SSL.


def residual(inner_bias=True):
    inputs = keras.Input((8, 8, 3))
    x = conv(6, name="stem")(inputs)
    for block in range(2):
        y = conv(5, activation="relu", name=f"inner{block}")(x)
        y = conv(6, use_bias=inner_bias, name=f"outer{block}")(y)
        x = layers.ReLU()(layers.Add()([x, y]) if block else x + y)
    return randomize(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))


def test_ssl_zero_filters_channels_and_branches_go():
    model = residual()
    change(model.get_layer("outer0"), kernel=zero(...), bias=zero(...))
    # An input channel that no weight reads takes its filter with it.
    change(model.get_layer("outer1"), kernel=zero(slice(None), slice(None), slice(1, 4)))
    small = remove_zero_groups(model)
    names = [layer.name for layer in small.layers]
    assert "outer0" not in names and "inner0" not in names
    assert small.get_layer("inner1").filters == 2
    compare(model, small)
    # `remove_dead` leaves layers.
    assert len(remove_dead(model).layers) == len(model.layers)


def test_ssl_both_blocks_gone():
    model = residual(inner_bias=False)
    model.compile("sgd", "mse")
    for block in range(2):
        change(model.get_layer(f"inner{block}"), kernel=zero(...))
        change(model.get_layer(f"outer{block}"), kernel=zero(...))
    small = remove_zero_groups(model)
    assert [layer.name for layer in small.layers if layer.weights] == [
        "stem",
        model.layers[-1].name,
    ]
    assert small.compiled
    compare(model, small)


def test_ssl_after_a_fit_with_proximal_steps():
    lasso = kc.regularizers.GroupLasso("filter", 0.1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(8, 3, activation="relu", kernel_regularizer=lasso, name="conv"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    keras.utils.set_random_seed(0)
    x = RNG.normal(size=(128, 6, 6, 1)).astype("float32")
    model.compile(keras.optimizers.SGD(0.05), "mse")
    steps = kc.callbacks.ProximalGroupLasso()
    model.fit(x, x[:, 2:3, 2, 0], epochs=20, callbacks=[steps], verbose=0)
    left = int(keras.ops.convert_to_numpy(model.layers[0].kernel).any((0, 1, 2)).sum())
    small = remove_zero_groups(model)
    assert small.get_layer("conv").filters == max(left, 1) < 8
    np.testing.assert_allclose(outputs(model, x)[0], outputs(small, x)[0], atol=1e-5)


def test_threshold_is_a_share_of_the_largest_group():
    model = randomize(dense_net(6, 5, 4, 3))
    kernel, bias = model.layers[0].get_weights()
    kernel[:, 0] = 0.01 * kernel[:, 1]
    model.layers[0].set_weights([kernel, 0 * bias])
    assert remove_zero_groups(model).layers[0].units == 5
    assert remove_zero_groups(model, threshold=0.02).layers[0].units == 4
    np.testing.assert_array_equal(model.layers[0].get_weights()[0], kernel)


def test_bad_input_is_refused():
    model = dense_net(4, 3, 2)
    with pytest.raises(ValueError, match=r"remove_zero_groups: `threshold` must be a number"):
        remove_zero_groups(model, 1.0)
    masked = kc.pruning.prune_weights(model, "magnitude", 0.5)
    for function in (remove_dead, remove_zero_groups):
        with pytest.raises(ValueError, match="under a pruning mask.*strip"):
            function(masked)
