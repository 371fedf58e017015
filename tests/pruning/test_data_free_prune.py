"""`DataFree` and `data_free_prune`: merges against brute force; no data anywhere."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from keras_compress.pruning.criteria.data_free import merge_order

RNG = np.random.default_rng(0)
DataFree = kc.pruning.criteria.DataFree


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers for a test, whichever others run."""
    keras.utils.set_random_seed(0)
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def array(variable):
    return keras.ops.convert_to_numpy(variable).astype("float64")


def mlp(units=6):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(units, activation="relu", name="hidden"),
            layers.Dense(4, name="logits"),
        ]
    )
    model.get_layer("hidden").bias.assign(RNG.normal(size=units))
    return model


def duplicate(layer, source, target):
    kernel, bias = array(layer.kernel), array(layer.bias)
    kernel[..., target], bias[target] = kernel[..., source], bias[source]
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)


def brute_force(incoming, outgoing):
    """Merges from the definition, every saliency computed anew."""
    outgoing, left, merges = outgoing.copy(), list(range(len(incoming))), []
    while len(left) > 1:
        cost, i, j = min(
            (np.mean(outgoing[j] ** 2) * np.sum((incoming[i] - incoming[j]) ** 2), i, j)
            for i in left
            for j in left
            if i != j
        )
        outgoing[i] += outgoing[j]
        left.remove(j)
        merges.append((j, i, cost))
    return merges


def test_greedy_order_equals_brute_force():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        incoming, outgoing = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
        found = merge_order(incoming, outgoing)
        removed, into, costs = zip(*brute_force(incoming, outgoing), strict=True)
        np.testing.assert_array_equal(found.removed, removed)
        np.testing.assert_array_equal(found.into, into)
        np.testing.assert_allclose(found.costs, costs, rtol=1e-10)


def test_saliencies_are_symmetric_in_the_distance():
    incoming, outgoing = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 3))
    saliencies = merge_order(incoming, outgoing).saliencies
    distances = saliencies / np.square(outgoing).mean(1)
    np.testing.assert_allclose(distances, distances.T)
    assert distances[1, 4] == pytest.approx(np.square(incoming[1] - incoming[4]).sum())


def test_scores_are_in_the_order_of_the_merges_and_need_no_data():
    model = mlp()
    hidden = model.get_layer("hidden")
    incoming = np.concatenate([array(hidden.kernel).T, array(hidden.bias)[:, None]], 1)
    merges = brute_force(incoming, array(model.get_layer("logits").kernel))
    scores = DataFree()(model)
    assert list(scores) == ["hidden"]
    np.testing.assert_array_equal(
        np.argsort(scores["hidden"])[:-1], [removed for removed, _, _ in merges]
    )
    assert "data" not in inspect.signature(kc.pruning.data_free_prune).parameters
    assert DataFree.needs == "nothing"


def test_identical_neurons_merge_without_a_change():
    model = mlp()
    duplicate(model.get_layer("hidden"), 1, 4)
    duplicate(model.get_layer("hidden"), 1, 5)
    small = kc.pruning.data_free_prune(model, 1 / 3)
    assert small.get_layer("hidden").units == 4
    x = RNG.normal(size=(50, 5)).astype("float32")
    np.testing.assert_allclose(small(x), model(x), atol=1e-6)


def test_identical_filters_through_pooling_and_flatten_to_several_readers():
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.MaxPooling2D()(x)
    first = layers.Conv2D(3, 2, name="reader")(x)
    second = layers.Dense(3, name="fc")(layers.Flatten()(x))
    model = keras.Model(inputs, [first, second])
    duplicate(model.get_layer("conv"), 0, 3)
    small = kc.pruning.data_free_prune(model, 0.2, layers=[model.get_layer("conv")])
    assert small.get_layer("conv").filters == 4
    x = RNG.normal(size=(5, 6, 6, 2)).astype("float32")
    for one, other in zip(small(x), model(x), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_deeper_layers_are_merged_on_what_is_left():
    model = keras.Sequential([keras.Input((5,))])
    for name in "ab":
        model.add(layers.Dense(6, activation="relu", name=name))
    model.add(layers.Dense(2))
    a, b = model.get_layer("a"), model.get_layer("b")
    duplicate(a, 0, 3)
    duplicate(a, 1, 4)
    # Two neurons of b that are alike only once those of a have been merged.
    kernel = array(b.kernel)
    kernel[:, 5] = kernel[:, 2]
    kernel[[0, 3], 5] += [1.0, -1.0]
    b.kernel.assign(kernel)
    small = kc.pruning.data_free_prune(model, 1 / 6)
    assert [layer.units for layer in small.layers] == [5, 5, 2]
    x = RNG.normal(size=(50, 5)).astype("float32")
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)


def test_surgery_beats_removal_without_it():
    model = mlp(24)
    # Biases apart, nothing was trained here: neurons in noisy pairs, as training makes them.
    kernel, bias = array(model.get_layer("hidden").kernel), array(model.get_layer("hidden").bias)
    kernel[:, 12:] = kernel[:, :12] + RNG.normal(0, 0.1, (5, 12))
    bias[12:] = bias[:12]
    model.get_layer("hidden").set_weights([kernel, bias])
    merged = kc.pruning.data_free_prune(model, 0.5)
    cut = kc.pruning.prune_channels(model, DataFree(), 0.5)
    np.testing.assert_array_equal(merged.get_layer("hidden").kernel, cut.get_layer("hidden").kernel)
    x = RNG.normal(size=(200, 5)).astype("float32")
    y = array(model(x))
    errors = [np.square(array(one(x)) - y).mean() for one in (merged, cut)]
    assert errors[0] < 0.2 * errors[1]


def test_without_a_ratio_the_mode_of_the_saliencies_is_the_end():
    model = mlp(24)
    kernel, bias = array(model.get_layer("hidden").kernel), array(model.get_layer("hidden").bias)
    kernel[:, 12:] = kernel[:, :12] + RNG.normal(0, 1e-3, (5, 12))
    bias[12:] = bias[:12]
    model.get_layer("hidden").set_weights([kernel, bias])
    small = kc.pruning.data_free_prune(model)
    assert 1 <= small.get_layer("hidden").units <= 12
    incoming = np.concatenate([kernel.T, bias[:, None]], 1)
    found = merge_order(incoming, array(model.get_layer("logits").kernel))
    finite = found.saliencies[np.isfinite(found.saliencies)]
    counts, edges = np.histogram(finite, "auto")
    end = edges[counts.argmax() : counts.argmax() + 2].mean()
    below = next(step for step, cost in enumerate(found.costs) if cost >= end)
    assert small.get_layer("hidden").units == 24 - below


def test_neurons_that_cannot_be_merged_are_refused():
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="normalized")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.SeparableConv2D(4, 3, name="separable")(x)
    model = keras.Model(inputs, layers.Dense(2, name="fc")(layers.Flatten()(x)))
    with pytest.raises(ValueError, match="'separable' .* filters each channel before"):
        kc.pruning.data_free_prune(model, 0.5, layers="normalized")
    with pytest.raises(ValueError, match="channels of 'fc' must stay"):
        kc.pruning.data_free_prune(model, 0.5, layers="fc")
    with pytest.raises(ValueError, match="`ratio` must be a number in"):
        kc.pruning.data_free_prune(model, 1.0)
    # The filters of the other can.
    assert kc.pruning.data_free_prune(model, 0.5).get_layer("separable").filters == 2


def test_a_batch_normalization_between_is_named():
    x = inputs = keras.Input((6, 6, 2))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(x))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(x))
    with pytest.raises(ValueError, match="'bn/gamma' has weights for each channel of 'conv'"):
        DataFree()(model)
