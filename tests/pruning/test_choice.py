"""`select` and `Budget`: from scores to the channels that stay."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from keras_compress.pruning import Budget, select
from keras_compress.pruning.surgery import ChannelGraph, cut


def _chain():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="a")(x)
    x = layers.Conv2D(6, 3, padding="same", name="b")(x)
    x = layers.Conv2D(4, 3, padding="same", name="c")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.GlobalAveragePooling2D()(x)))


def _scores(**scores):
    return {name: np.array(values, "float32") for name, values in scores.items()}


SCORES = _scores(a=[1, 5, 2, 9], b=[3, 4, 6, 7, 8, 10], c=[0.1, 0.2, 0.3, 0.4])


def _sizes(graph, kept):
    return {p.name: int(kept[p.channels].sum()) for p in graph.producers}


def test_global_order_is_that_of_all_scores():
    graph = ChannelGraph(_chain())
    kept = select(graph, SCORES, 0.5)
    # 7 of 14 go: 0.1, 0.2, 0.3 (c keeps one), 1, 2, 3, 4.
    assert _sizes(graph, kept) == {"a": 2, "b": 4, "c": 1, "out": 2}
    a = graph.producers[0]
    np.testing.assert_array_equal(kept[a.channels], [False, True, False, True])


def test_layer_scope_takes_the_same_share_of_each():
    graph = ChannelGraph(_chain())
    assert _sizes(graph, select(graph, SCORES, 0.5, scope="layer")) == {
        "a": 2,
        "b": 3,
        "c": 2,
        "out": 2,
    }


def test_unscored_layers_and_outputs_stay():
    graph = ChannelGraph(_chain())
    kept = select(graph, {"b": SCORES["b"]}, 0.5)
    assert _sizes(graph, kept) == {"a": 4, "b": 3, "c": 4, "out": 2}


def test_scores_of_readers_choose_what_they_read():
    graph = ChannelGraph(_chain())
    kept = select(graph, _scores(b=[4, 3, 2, 1]), 0.5)
    np.testing.assert_array_equal(kept[graph.producers[0].channels], [True, True, False, False])


def test_min_keep_and_round_to():
    graph = ChannelGraph(_chain())
    assert _sizes(graph, select(graph, SCORES, 0.99, min_keep=2))["b"] == 2
    assert _sizes(graph, select(graph, SCORES, 0.99, min_keep=0.75))["a"] == 3
    sizes = _sizes(graph, select(graph, SCORES, 0.4, round_to=4))
    assert sizes["a"] == 4 and sizes["b"] in (4, 6)


def test_tied_channels_share_the_mean_of_their_scores():
    x = inputs = keras.Input((4, 4, 3))
    first = layers.Conv2D(3, 1, name="first")(x)
    second = layers.Conv2D(3, 1, name="second")(x)
    x = layers.Flatten()(layers.Add()([first, second]))
    graph = ChannelGraph(keras.Model(inputs, layers.Dense(2)(x)))
    kept = select(graph, _scores(first=[0, 5, 4], second=[9, 1, 4.5]), 1 / 3)
    # Means 4.5, 3, 4.25.
    np.testing.assert_array_equal(kept[graph.producers[0].channels], [True, False, True])


@pytest.mark.parametrize("what, share", [("macs", 0.4), ("macs", 0.7), ("bytes", 0.5)])
def test_budget_is_met_by_the_least_removal(what, share):
    model = _chain()
    graph = ChannelGraph(model)
    kept = select(graph, SCORES, Budget(**{what: share}))

    def cost(small):
        return kc.profile.macs(small) if what == "macs" else small.count_params()

    assert cost(cut(graph, kept)) <= share * cost(model)
    # Brute force: one channel less in the order of the scores does not meet it.
    gone = sorted(
        (score, layer, index)
        for layer, scores in SCORES.items()
        for index, score in enumerate(scores)
        if not kept[next(p for p in graph.producers if p.name == layer).channels[index]]
    )
    _, layer, index = gone[-1]
    kept[next(p for p in graph.producers if p.name == layer).channels[index]] = True
    assert cost(cut(graph, kept)) > share * cost(model)


def test_a_merged_group_empties_no_layer():
    # Two halves joined, added to a whole: one group of three layers.
    x = inputs = keras.Input((4, 4, 3))
    halves = layers.Concatenate()([layers.Conv2D(3, 1, name=f"half{i}")(x) for i in (0, 1)])
    x = layers.Add()([halves, layers.Conv2D(6, 1, name="whole")(x)])
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    graph = ChannelGraph(model)
    kept = select(graph, _scores(whole=[1, 2, 3, 40, 50, 60], half0=[0] * 3, half1=[9] * 3), 0.8)
    assert _sizes(graph, kept)["half0"] == 1
    cut(graph, kept)


def test_bad_targets_say_what_is_possible():
    model = _chain()
    with pytest.raises(ValueError, match=r"Budget\(macs=0.001\) cannot be met.*0\.\d+ of the macs"):
        kc.pruning.prune_channels(model, "l1", Budget(macs=0.001))
    with pytest.raises(ValueError, match=r"`target` must be a number in \[0, 1\)"):
        kc.pruning.prune_channels(model, "l1", 1.0)
    with pytest.raises(ValueError, match="exactly one of macs=, params=.*; got no"):
        Budget()
    with pytest.raises(ValueError, match="exactly one"):
        Budget(macs=0.5, bytes=0.5)
    with pytest.raises(ValueError, match="`macs` must be a number in"):
        Budget(macs=1.5)
    with pytest.raises(ValueError, match="`scope` must be one of"):
        kc.pruning.prune_channels(model, "l1", 0.5, scope="all")
    with pytest.raises(ValueError, match="No layer matches 'd'"):
        kc.pruning.prune_channels(model, "l1", 0.5, layers=["d"])
    with pytest.raises(ValueError, match="no channel can go"):
        kc.pruning.prune_channels(model, "l1", 0.5, layers=["out"])
    with pytest.raises(ValueError, match="`criterion` must be one of.*Did you mean 'l1'"):
        kc.pruning.prune_channels(model, "L1", 0.5)
    with pytest.raises(ValueError, match="one for each of its 4 channels"):
        select(ChannelGraph(model), _scores(a=[1, 2]), 0.5)
    with pytest.raises(ValueError, match="scores for 'd', which the model has not"):
        select(ChannelGraph(model), _scores(d=[1, 2]), 0.5)
