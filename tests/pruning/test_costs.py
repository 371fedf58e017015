"""Costs of a model without some channels equal those of the model that was cut."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from keras_compress.profile.latency_table import channel_ends
from keras_compress.pruning import Budget, ChannelGraph, select
from keras_compress.pruning.costs import cost_of
from keras_compress.pruning.surgery import cut
from tests.pruning.surgery.common import half


def mixed():
    x = inputs = keras.Input((8, 8, 3))
    x = stem = layers.Conv2D(8, 3, padding="same", name="stem")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = layers.Conv2D(8, 1)(x)
    x = layers.Add()([x, stem])
    x = layers.SeparableConv2D(6, 3)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Conv2D(6, 3, groups=6)(x)
    x = layers.Conv2D(8, 1)(x)
    x = layers.Conv2D(8, 3, padding="same", groups=2)(x)
    x = layers.Conv2DTranspose(4, 2, strides=2)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def attention():
    x = inputs = keras.Input((6, 5))
    x = layers.Dense(8)(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 2)(x, x)])
    x = layers.EinsumDense("abc,cd->abd", output_shape=(6, 6))(x)
    return keras.Model(inputs, layers.LSTM(3)(x))


@pytest.mark.parametrize("build", [mixed, attention])
@pytest.mark.parametrize("sparse", [False, True])
def test_energy_equals_that_of_the_pruned_model(build, sparse):
    model = build()
    if sparse:
        for variable in model.trainable_variables:
            if len(variable.shape) > 1:
                array = keras.ops.convert_to_numpy(variable)
                variable.assign(
                    np.where(np.random.default_rng(0).random(array.shape) < 0.4, 0, array)
                )
    graph = ChannelGraph(model)
    cost = cost_of("energy", graph)
    assert cost(np.ones(graph.count, bool)) == pytest.approx(kc.profile.energy(model).total)
    for seed in range(3):
        kept = half(graph, seed)
        expected = kc.profile.energy(cut(graph, kept)).total
        assert cost(kept) == pytest.approx(expected, rel=1e-12)


def test_latency_is_the_sum_over_the_table_at_the_widths_that_are_left():
    model = mixed()
    table = kc.profile.latency_table(
        model, (0.5,), timer=lambda models: [one.count_params() * 1e-6 for one in models]
    )
    graph = ChannelGraph(model)
    cost = cost_of("latency", graph, table)
    kept = half(graph)
    expected = 0.0
    for layer in cut(graph, kept).layers:
        ends = channel_ends(layer)
        if ends is not None:
            widths = [end[0].shape[end[1]] if end else 1 for end in ends]
            expected += table.seconds(layer.name, *widths)
    assert cost(kept) == pytest.approx(expected)
    assert cost(np.ones(graph.count, bool)) > cost(kept)


@pytest.mark.parametrize("what", ["energy", "latency"])
def test_budgets_are_met_by_the_fewest_channels(what):
    model = mixed()
    options = {}
    if what == "latency":
        options["latency_table"] = kc.profile.latency_table(
            model, timer=lambda models: [kc.profile.macs(one) * 1e-9 for one in models]
        )
    graph = ChannelGraph(model)
    scores = kc.pruning.criteria.L1Filter(normalize="max")(graph)
    budget = Budget(**{what: 0.7}, **options)
    kept = select(graph, scores, budget)
    cost = cost_of(what, graph, options.get("latency_table"))
    limit = 0.7 * cost(np.ones(graph.count, bool))
    number = next(n for n in range(100) if (select(graph, scores, n) == kept).all())
    assert cost(kept) <= limit < cost(select(graph, scores, number - 1))


def test_params_equal_those_of_the_pruned_model():
    graph = ChannelGraph(mixed())
    cost = cost_of("params", graph)
    kept = half(graph)
    assert cost(kept) == cut(graph, kept).count_params()


def test_a_table_goes_with_latency():
    with pytest.raises(ValueError, match="`latency_table` goes with latency="):
        Budget(macs=0.5, latency_table=object())
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(2)])
    other = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="other")])
    table = kc.profile.latency_table(other, timer=lambda models: [1.0] * len(models))
    with pytest.raises(ValueError, match="'a' was not measured"):
        kc.pruning.prune_channels(model, "l1", Budget(latency=0.5, latency_table=table))
