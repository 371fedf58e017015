"""`greedy_finetune`: score, remove a few, train a little, again."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.pruning.criteria import KernelCriterion

RNG = np.random.default_rng(0)
greedy_finetune = kc.pruning.greedy_finetune


def compiled(rate=0.05):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu", name="a"),
            keras.layers.Dense(6, activation="relu", name="b"),
            keras.layers.Dense(1, name="out"),
        ]
    )
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def data(rows=128):
    x = RNG.normal(size=(rows, 6)).astype("float32")
    return x, np.maximum(x[:, :1], 0) - x[:, 1:2]


class Recorded(KernelCriterion):
    """Magnitudes, and which sizes they were asked of."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def score(self, graph, parts, samples, loss):
        self.seen.append(sum(len(group) for group in graph.groups))
        return super().score(graph, parts, samples, loss)

    def of_kernel(self, rows):
        return np.abs(rows).sum(1)


def test_scores_anew_after_each_removal_until_the_target():
    model = compiled()
    before = model.get_weights()
    criterion = Recorded()
    small = greedy_finetune(
        model, criterion, data(), 0.5, remove_per_step=3, updates_between=1, seed=0, verbose=0
    )
    # 7 of 14 channels: 3, 3 and 1.
    assert criterion.seen == [14, 11, 8]
    assert small.get_layer("a").units + small.get_layer("b").units == 7
    assert small.compiled and small.loss == "mse"
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_updates_it_is_the_repeated_removal_of_the_least():
    model = compiled()
    small = greedy_finetune(model, "l1", data(), 4 / 14, updates_between=0, verbose=0)
    by_hand = model
    for _ in range(4):
        by_hand = kc.pruning.prune_channels(by_hand, "l1", 1)
    for a, b in zip(small.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_steps_between_are_those_of_the_compiled_optimizer():
    model, (x, y) = compiled(), data(16)
    # All rows in a batch: the order does not matter.
    small = greedy_finetune(
        model, "l1", (x, y), 1 / 14, updates_between=3, batch_size=16, verbose=0
    )
    by_hand = kc.pruning.prune_channels(model, "l1", 1)
    for _ in range(3):
        by_hand.train_on_batch(x, y)
    for a, b in zip(small.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("what", ["macs", "bytes"])
def test_goes_on_to_a_budget_and_not_beyond(what):
    model = compiled()
    budget = kc.pruning.Budget(**{what: 0.5})
    small = greedy_finetune(
        model, "taylor", data(), budget, remove_per_step=4, updates_between=1, seed=0, verbose=0
    )
    cost = {
        "macs": kc.profile.macs,
        "bytes": lambda model: 4 * model.count_params(),
    }[what]
    share = cost(small) / cost(model)
    # A unit of `a` is at most 6 + 6 of the 90 products.
    assert 0.5 - 0.15 < share <= 0.5


def test_beats_removal_at_once():
    x, y = data(512)
    model = compiled(0.1)
    model.fit(x, y, epochs=20, batch_size=32, verbose=0)
    small = greedy_finetune(
        model, "taylor", (x, y), 0.5, updates_between=20, score_batches=4, seed=0, verbose=0
    )
    at_once = kc.pruning.prune_channels(model, "taylor", 0.5, (x, y))
    losses = [m.evaluate(x, y, verbose=0) for m in (small, at_once)]
    assert losses[0] < 0.5 * losses[1]


def test_iterables_of_batches_progress_and_reproducibility(capsys):
    x, y = data(64)
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    one, two = (
        greedy_finetune(compiled(), "taylor", batches, 3 / 14, updates_between=2, verbose=verbose)
        for verbose in (1, 0)
    )
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "3/3" in capsys.readouterr().out


def test_bad_input_is_refused():
    model, (x, y) = compiled(), data()
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="is not compiled"):
        greedy_finetune(plain, "l1", (x, y), verbose=0)
    with pytest.raises(ValueError, match="greedy_finetune: this needs targets"):
        greedy_finetune(model, "l1", x, verbose=0)
    with pytest.raises(ValueError, match="`remove_per_step` must be a positive integer"):
        greedy_finetune(model, "l1", (x, y), remove_per_step=0, verbose=0)
    with pytest.raises(ValueError, match="cannot be met"):
        greedy_finetune(model, "l1", (x, y), kc.pruning.Budget(macs=0.01), verbose=0)
    weights = kc.pruning.criteria.InboundVariance()
    with pytest.raises(ValueError, match="scores single weights"):
        greedy_finetune(model, weights, (x, y), verbose=0)
