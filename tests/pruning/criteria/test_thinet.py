"""`ThiNet`: the greedy order against brute force, and what select makes of it."""

import itertools

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
ThiNet = kc.pruning.criteria.ThiNet


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers for a test, whichever others run."""
    keras.utils.set_random_seed(0)
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def conv_model(channels=6):
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(channels, 3, activation="relu", name="maker")(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", strides=2, name="reader")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def contributions(model, x):
    """What each channel gives to the reader's outputs at all positions, by the layer itself."""
    reader = model.get_layer("reader")
    maps = keras.ops.convert_to_numpy(model.get_layer("maker")(x))
    given = []
    for channel in range(maps.shape[-1]):
        alone = np.where(np.arange(maps.shape[-1]) == channel, maps, 0)
        given.append(keras.ops.convert_to_numpy(reader(alone) - reader.bias).ravel())
    return np.array(given, "float64")


def brute_force(given):
    """Order and errors of removal, from the definition."""
    removed, errors = [], []
    while len(removed) < len(given):
        costs = {
            c: np.square(given[[*removed, c]].sum(0)).sum()
            for c in range(len(given))
            if c not in removed
        }
        removed.append(min(costs, key=costs.get))
        errors.append(min(costs.values()))
    return removed, np.array(errors) / np.square(given.sum(0)).sum()


def test_greedy_objective_equals_brute_forces_greedy_step():
    model = conv_model()
    x = RNG.normal(size=(5, 6, 6, 2)).astype("float32")
    scores = ThiNet(positions=100)(model, data=x, batch_size=2)
    order, errors = brute_force(contributions(model, x))
    np.testing.assert_array_equal(np.argsort(scores["reader"]), order)
    np.testing.assert_allclose(
        scores["reader"][order], np.maximum.accumulate(errors), rtol=1e-4, atol=1e-8
    )


def test_select_at_any_count_gives_the_greedy_set():
    model = conv_model()
    x = RNG.normal(size=(5, 6, 6, 2)).astype("float32")
    graph = kc.pruning.ChannelGraph(model)
    scores = ThiNet(positions=100)(graph, data=x)
    order, _ = brute_force(contributions(model, x))
    channels = graph.consumers[-1].channels
    for count in range(6):
        kept = kc.pruning.select(graph, scores, count)
        np.testing.assert_array_equal(np.flatnonzero(~kept[channels]), np.sort(order[:count]))


def test_of_independent_channels_the_best_set_is_removed():
    # Orthogonal contributions: six inputs that fire one at a time.
    given = np.diag(RNG.uniform(0.5, 2, 6))
    order, costs = ThiNet().removal(given @ given.T)
    for count in range(1, 6):
        best = min(
            np.square(given[list(those)].sum(0)).sum()
            for those in itertools.combinations(range(6), count)
        )
        assert costs[count - 1] == pytest.approx(best)
        assert np.square(given[order[:count]].sum(0)).sum() == pytest.approx(best)


def test_channels_that_cancel_go_together():
    # Each alone is the largest, but 0 and 2 add up to nothing.
    given = np.array([[1.0, 3.0], [4.0, 0.0], [-1.0, -3.0], [0.0, 3.5]])
    order, _ = ThiNet().removal(given @ given.T)
    assert set(order[:2]) == {0, 2}


def test_an_all_zero_channel_goes_first_at_no_cost():
    model = conv_model()
    maker = model.get_layer("maker")
    kernel = keras.ops.convert_to_numpy(maker.kernel).copy()
    kernel[..., 3] = 0
    maker.kernel.assign(kernel)
    x = RNG.normal(size=(5, 6, 6, 2)).astype("float32")
    scores = ThiNet()(model, data=x)["reader"]
    assert scores.argmin() == 3 and scores[3] == pytest.approx(0, abs=1e-12)
    small = kc.pruning.prune_channels(model, "thinet", 1 / 6, x)
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)


def test_channels_that_flatten_spreads_are_whole_and_share_their_score():
    inputs = keras.Input((3, 3, 2))
    x = keras.layers.Conv2D(4, 2, activation="relu", name="maker")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="reader")(keras.layers.Flatten()(x)))
    x = RNG.normal(size=(8, 3, 3, 2)).astype("float32")
    scores = ThiNet()(model, data=x)["reader"].reshape(4, 4)
    assert (scores == scores[0]).all()
    maps = keras.ops.convert_to_numpy(model.get_layer("maker")(x)).reshape(8, 4, 4)
    kernel = keras.ops.convert_to_numpy(model.get_layer("reader").kernel).reshape(4, 4, 3)
    given = np.einsum("npc,pcj->cnj", maps, kernel).reshape(4, -1)
    order, errors = brute_force(given)
    np.testing.assert_allclose(scores[0][order], np.maximum.accumulate(errors), rtol=1e-4)


def test_what_cannot_be_scored_is_refused():
    model = conv_model()
    x = RNG.normal(size=(2, 6, 6, 2))
    with pytest.raises(ValueError, match="none of the layers 'maker'"):
        ThiNet()(model, "maker", x)
    with pytest.raises(ValueError, match="`positions` must be a positive integer"):
        ThiNet(positions=0)
    with pytest.raises(ValueError, match="needs data"):
        ThiNet()(model)
