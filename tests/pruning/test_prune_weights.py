"""`prune_weights`: what goes, what stays, and that it stays so."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
prune_weights = kc.pruning.prune_weights


def two_layers():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(12, activation="tanh", name="first"),
            keras.layers.Dense(4, name="second"),
        ]
    )
    model.get_layer("first").kernel.assign(RNG.normal(size=(8, 12)))
    model.get_layer("second").kernel.assign(0.5 * RNG.normal(size=(12, 4)))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


def kernel(model, name):
    return keras.ops.convert_to_numpy(model.get_layer(name).kernel)


def zeros(model):
    return [int((kernel(model, name) == 0).sum()) for name in ("first", "second")]


def test_the_smallest_weights_of_each_layer_go():
    model = two_layers()
    before = [kernel(model, name) for name in ("first", "second")]
    pruned = prune_weights(model, "magnitude", 0.75)
    for name, weights in zip(("first", "second"), before, strict=True):
        limit = np.quantile(np.abs(weights), 0.75)
        expected = np.where(np.abs(weights) < limit, 0, weights)
        np.testing.assert_array_equal(kernel(pruned, name), expected)
        np.testing.assert_array_equal(kernel(model, name), weights)
    assert len(model.weights) == 4


def test_global_scope_has_one_order_for_all_kernels():
    model = two_layers()
    pruned = prune_weights(model, "magnitude", 0.5, scope="global")
    weights = np.concatenate([kernel(model, n).ravel() for n in ("first", "second")])
    left = np.concatenate([kernel(pruned, n).ravel() for n in ("first", "second")])
    order = np.argsort(np.abs(weights))
    assert sorted(np.flatnonzero(left == 0)) == sorted(order[:72])
    # Of each kernel something stays, and normalized scores are comparable.
    assert zeros(prune_weights(model, "magnitude", 0.99, scope="global"))[1] == 47
    scaled = kc.pruning.criteria.Magnitude(normalize="l2")
    assert zeros(prune_weights(model, scaled, 0.5, scope="global"))[0] > 30


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_groups_go_whole(scope):
    model = two_layers()
    filters = prune_weights(model, "magnitude", 0.5, granularity="filter", scope=scope)
    blocks = prune_weights(
        model, "magnitude", 0.5, granularity="block", block_size=(4, 4), scope=scope
    )
    gone = [(kernel(filters, name) == 0).mean(0) for name in ("first", "second")]
    assert all(set(share) <= {0.0, 1.0} for share in gone)
    for name, shape in (("first", (2, 4, 3, 4)), ("second", (3, 4, 1, 4))):
        shares = (kernel(blocks, name) == 0).reshape(shape).mean((1, 3))
        assert set(shares.ravel()) <= {0.0, 1.0}
    if scope == "global":
        # Filters of 8 and of 12 weights: as many as half of all weights are.
        total = sum(zeros(filters))
        assert 72 - 12 < total <= 72
        assert sum(zeros(blocks)) == 64
    else:
        assert zeros(filters) == [48, 24] and zeros(blocks) == [48, 32]


def test_a_pattern_keeps_n_of_m():
    pruned = prune_weights(two_layers(), "magnitude", 0.5, granularity="2:4")
    assert ((kernel(pruned, "first") != 0).reshape(2, 4, 12).sum(1) == 2).all()


def test_later_training_keeps_the_zeros_and_strip_makes_it_plain():
    pruned = prune_weights(two_layers(), "magnitude", 0.75)
    before = kernel(pruned, "first")
    x, y = RNG.normal(size=(64, 8)), RNG.normal(size=(64, 4))
    pruned.fit(x, y, epochs=2, batch_size=16, verbose=0)
    after = kernel(pruned, "first")
    np.testing.assert_array_equal(after == 0, before == 0)
    assert (after != before)[before != 0].mean() > 0.5
    plain = kc.pruning.strip(pruned)
    assert len(plain.weights) == 4 and plain.layers[0].kernel_constraint is None
    np.testing.assert_array_equal(kernel(plain, "first"), after)


def test_a_saved_model_keeps_its_masks(tmp_path):
    pruned = prune_weights(two_layers(), "magnitude", 0.5)
    pruned.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x, y = RNG.normal(size=(32, 8)), RNG.normal(size=(32, 4))
    loaded.fit(x, y, verbose=0)
    assert zeros(loaded) == [48, 24]


def test_a_further_round_starts_from_what_the_last_one_left():
    model = two_layers()
    x, y = RNG.normal(size=(64, 8)), RNG.normal(size=(64, 4))
    first = prune_weights(model, "correlation", 0.5, x)
    first.fit(x, y, epochs=1, verbose=0)
    second = prune_weights(first, "correlation", 0.75, x)
    assert zeros(first) == [48, 24] and zeros(second) == [72, 36]
    for name in ("first", "second"):
        stays = kernel(second, name) != 0
        np.testing.assert_array_equal(kernel(second, name)[stays], kernel(first, name)[stays])
    # Masks of layers that are not chosen stay, and hold; less than there is frees nothing.
    other = prune_weights(first, "magnitude", 0.75, layers="second")
    assert zeros(other) == [48, 36]
    other.fit(x, y, epochs=1, verbose=0)
    assert zeros(other) == [48, 36]
    assert zeros(prune_weights(first, "magnitude", 0.25)) == [48, 24]


def test_share_of_weak_connections_is_as_asked():
    model = two_layers()
    scores = np.abs(kernel(model, "first"))
    for keep_weak in (0.0, 0.25, 1.0):
        pruned = prune_weights(model, "magnitude", 0.75, keep_weak=keep_weak, layers="first")
        kept = kernel(pruned, "first") != 0
        assert kept.sum() == 24
        assert (scores[kept] < np.median(scores)).sum() == 24 * keep_weak
    draws = [
        kernel(prune_weights(model, "magnitude", 0.75, keep_weak=0.25, seed=seed), "first")
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    again = prune_weights(prune_weights(model, "magnitude", 0.5), "magnitude", 0.75, keep_weak=0.25)
    assert zeros(again) == [72, 36]
    with pytest.raises(ValueError, match="0.333 to 0.667 can be of the lower half"):
        prune_weights(model, "magnitude", 0.25, keep_weak=0.1)


def test_frozen_layers_and_embeddings_go_only_if_chosen():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(10, 6, name="words"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="frozen", trainable=False),
            keras.layers.Dense(2, name="free"),
        ]
    )
    by_default = prune_weights(model, "magnitude", 0.5)
    assert (kernel(by_default, "frozen") != 0).all() and (
        kernel(by_default, "free") == 0
    ).sum() == 4
    named = prune_weights(model, "magnitude", 0.5, layers=["frozen", "words"])
    assert (kernel(named, "frozen") == 0).sum() == 48
    words = keras.ops.convert_to_numpy(named.get_layer("words").embeddings)
    assert (words == 0).sum() == 30 and (kernel(named, "free") != 0).all()


def test_arguments_that_do_not_go_together_are_refused():
    model = two_layers()
    cases = {
        "kc.pruning.prune_channels": {"criterion": "l1", "sparsity": 0.5},
        "Magnitude needs a share": {},
        "IntraKernelStrided chooses by itself": {
            "criterion": "intra_kernel_strided",
            "sparsity": 0.5,
        },
        "scope='layer'": {"sparsity": 0.5, "scope": "global", "granularity": "2:4"},
        "`keep_weak` goes with": {"sparsity": 0.5, "keep_weak": 0.5, "scope": "global"},
        "sparsity=1.0": {"sparsity": 1.0},
        "No layer matches 'third'": {"sparsity": 0.5, "layers": "third"},
        "this needs data": {"criterion": "obs", "sparsity": 0.5},
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            prune_weights(model, **arguments)
    with pytest.raises(ValueError, match="single weights; those go to"):
        kc.pruning.prune_channels(model, "magnitude", 0.5)
