"""Pruning Filters for Efficient ConvNets: norms, greedy choice, and what it saves."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
L1Filter = kc.pruning.criteria.L1Filter


def chain(*filters, size=10):
    model = keras.Sequential([keras.Input((size, size, 3))])
    for number, width in enumerate(filters, 1):
        model.add(keras.layers.Conv2D(width, 3, padding="same", name=f"conv{number}"))
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(4, name="logits"))
    return model


@pytest.mark.parametrize("order", [1, 2])
def test_scores_equal_numpy(order):
    model = chain(5, 6)
    scores = L1Filter(order)(model)
    for name, score in scores.items():
        kernel = keras.ops.convert_to_numpy(model.get_layer(name).kernel).astype("float64")
        sums = (np.abs(kernel) ** order).sum(tuple(range(kernel.ndim - 1))) ** (1 / order)
        np.testing.assert_allclose(score, sums, rtol=1e-5)


def two_layers():
    """Filter 0 of `b` has its weights on what `a` loses, filter 1 on what it keeps."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, use_bias=False, name="a"),
            keras.layers.Dense(2, use_bias=False, name="b"),
            keras.layers.Dense(1, name="out"),
        ]
    )
    model.get_layer("a").set_weights([np.array([[0.1, 1.0], [0.1, 1.0], [0.1, 1.0]])])
    model.get_layer("b").set_weights([np.array([[5.0, 1.0], [1.0, 2.0]])])
    return model


def test_greedy_differs_from_independent_as_in_a_hand_made_two_layer_case():
    model = two_layers()
    independent = kc.pruning.prune_channels(model, "l1", 0.5, scope="layer")
    greedy = kc.pruning.prune_channels(model, "l1", 0.5, scope="layer", greedy=True)
    # Both remove unit 0 of a, which leaves the sums 1 and 2 of 6 and 3.
    for small in (independent, greedy):
        np.testing.assert_allclose(small.get_layer("a").get_weights()[0], [[1.0]] * 3)
    np.testing.assert_allclose(independent.get_layer("b").get_weights()[0], [[1.0]])
    np.testing.assert_allclose(greedy.get_layer("b").get_weights()[0], [[2.0]])


def test_greedy_equals_pruning_layer_by_layer_from_the_first():
    model = chain(6, 8, 10)
    greedy = kc.pruning.prune_channels(model, "l1", 0.5, scope="layer", greedy=True)
    by_hand = model
    for name in ("conv1", "conv2", "conv3"):
        by_hand = kc.pruning.prune_channels(by_hand, "l1", 0.5, layers=name)
    for a, b in zip(greedy.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # `layers` chooses here, too.
    part = kc.pruning.prune_channels(
        model, "l1", 0.5, layers=["conv1", "conv2"], scope="layer", greedy=True
    )
    assert [part.get_layer(f"conv{n}").filters for n in (1, 2, 3)] == [3, 4, 10]


def test_greedy_is_for_layers_shares_and_kernels():
    model, x = chain(4, 4), RNG.normal(size=(2, 10, 10, 3))
    with pytest.raises(ValueError, match="takes scope='layer' and a share; got scope='global'"):
        kc.pruning.prune_channels(model, "l1", 0.5, greedy=True)
    with pytest.raises(ValueError, match=r"target=Budget\(macs=0.5\)"):
        kc.pruning.prune_channels(
            model, "l1", kc.pruning.Budget(macs=0.5), scope="layer", greedy=True
        )
    with pytest.raises(ValueError, match="kernel alone, such as 'l1'; got Entropy"):
        kc.pruning.prune_channels(model, "entropy", 0.5, x, scope="layer", greedy=True)


@pytest.mark.parametrize("gone", [1, 3])
def test_macs_fall_by_m_of_n_of_this_layer_and_of_the_next(gone):
    model = chain(6, 8, 10)
    # Positions, taps, filters that a layer reads and makes.
    this, following = 100 * 9 * 6 * 8, 100 * 9 * 8 * 10
    small = kc.pruning.prune_channels(model, "l1", gone / 8, layers="conv2")
    assert small.get_layer("conv2").filters == 8 - gone
    saved = kc.profile.macs(model) - kc.profile.macs(small)
    assert saved == gone / 8 * (this + following)


def test_an_integer_target_is_a_number_of_channels():
    model = chain(6, 8)
    graph = kc.pruning.ChannelGraph(model)
    scores = L1Filter()(graph)
    for number in (0, 1, 5):
        assert (~kc.pruning.select(graph, scores, number)).sum() == number
    with pytest.raises(ValueError, match="`target` must be an integer from 0 to 12; got target=13"):
        kc.pruning.select(graph, scores, 13)
