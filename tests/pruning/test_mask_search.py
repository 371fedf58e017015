"""RandomMaskSearch and ParticleFilter: masks judged on one masked copy of a model."""

import itertools

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.pruning.masked_copies import MaskedCopies

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 5, 5, 2)).astype("float32")
Y = (X[..., 0].mean(axis=(1, 2)) > 0).astype("int32")


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def model_of(filters=6, metrics=("accuracy",)):
    keras.utils.set_random_seed(4)
    layers = keras.layers
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(filters, 3, padding="same", name="stem")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("sigmoid")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=list(metrics))
    return model


def residual():
    keras.utils.set_random_seed(4)
    layers = keras.layers
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(10, 3, padding="same", activation="relu", name="wide")(x)
    y = layers.Conv2D(6, 1, name="narrow")(y)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    model = keras.Model(inputs, layers.Dense(2, name="logits")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def by_hand(model, kept):
    """Loss of a model without some filters of its stem, from its weights, in numpy."""
    stem, norm, logits = model.layers[1], model.layers[2], model.get_layer("logits")
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    x = np.einsum("nxychw,hwco->nxyo", patches, values(stem.kernel)) + values(stem.bias)
    x = (x - values(norm.moving_mean)) / np.sqrt(values(norm.moving_variance) + norm.epsilon)
    x = x * values(norm.gamma) + values(norm.beta)
    x = (1 / (1 + np.exp(-x))).mean(axis=(1, 2)) * kept
    z = x @ values(logits.kernel) + values(logits.bias)
    return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(Y)), Y]))


@pytest.mark.parametrize("granularity", ["filter", "kernel"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_anwar_all_masks_have_the_exact_ratio(granularity, ratio):
    copies = MaskedCopies(residual(), (X, Y), granularity, ratio)
    rng = np.random.default_rng(1)
    for _ in range(30):
        mask = copies.draw(rng)
        for perturbed in (mask, copies.perturb(mask, 0.3, rng), copies.perturb(mask, 1.0, rng)):
            for units in copies.groups.values():
                pruned = (~perturbed[units]).sum()
                assert pruned == min(int(ratio * len(units) + 0.5), len(units) - 1)
    sizes = {name: len(units) for name, units in copies.groups.items()}
    if granularity == "filter":
        assert sizes == {"stem + narrow": 6, "wide": 10}
    else:
        assert sizes == {"stem": 12, "wide": 60, "narrow": 60}


def test_fitness_is_that_of_the_cut_model_computed_by_hand():
    model = model_of(metrics=())
    model.get_layer("stem").bias.assign(RNG.normal(size=6))
    copies = MaskedCopies(model, (X, Y), "filter", 0.5)
    (units,) = copies.groups.values()
    rng = np.random.default_rng(2)
    for _ in range(5):
        mask = copies.draw(rng)
        assert copies.fitness(mask) == pytest.approx(-by_hand(model, mask[units]), abs=1e-5)


def test_nothing_is_traced_again():
    model = model_of()
    copies = MaskedCopies(model, (X, Y), "kernel", 0.5)
    traces = []
    call = copies._copy.call
    copies._copy.call = lambda *args, **kwargs: traces.append(1) or call(*args, **kwargs)
    copies._copy.test_function = None
    rng = np.random.default_rng(0)
    copies.fitness(copies.draw(rng))
    first = len(traces)
    for _ in range(5):
        copies.fitness(copies.draw(rng))
    assert len(traces) == first > 0


def test_anwar_best_of_n_is_monotone_and_nested_for_one_seed():
    model = model_of(metrics=())
    few = kc.pruning.RandomMaskSearch(trials=4, seed=7).search(model, (X, Y))
    many = kc.pruning.RandomMaskSearch(trials=12, seed=7).search(model, (X, Y))
    assert many.best[:4] == few.best and many.fitness >= few.fitness
    assert many.best == sorted(many.best) and many.best[-1] == many.fitness
    assert many.fitness == pytest.approx(-by_hand(model, many.masks["stem"]), abs=1e-5)


SEARCHES = {
    "random": lambda granularity: kc.pruning.RandomMaskSearch(5, granularity=granularity).search,
    "particles": lambda granularity: (
        lambda model, data: kc.pruning.ParticleFilter(4, 2).search(model, data, granularity)
    ),
}


@pytest.mark.parametrize("granularity", ["filter", "kernel"])
@pytest.mark.parametrize("search", SEARCHES)
def test_result_does_what_was_measured_and_the_model_is_untouched(search, granularity):
    model = residual()
    before = [values(weight) for weight in model.weights]
    found = SEARCHES[search](granularity)(model, (X, Y))
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, values(b))
    logs = found.model.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs["accuracy"] == pytest.approx(found.fitness, abs=1e-6)
    if granularity == "filter":
        assert found.model.get_layer("stem").filters == 3
        assert found.model.get_layer("wide").filters == 5
        kept = found.masks["wide"]
        want = values(model.get_layer("wide").bias)[kept]
        np.testing.assert_array_equal(values(found.model.get_layer("wide").bias), want)
    else:
        for name in ("stem", "wide", "narrow"):
            alive = values(found.model.get_layer(name).kernel).any(axis=(0, 1))
            np.testing.assert_array_equal(alive, found.masks[name])
            assert alive.sum() == alive.size // 2


def test_anwar_2017_best_fitness_never_falls_and_is_reproducible():
    model = model_of(metrics=())
    runs = [
        kc.pruning.ParticleFilter(6, 8, ratio=0.5, mutation=0.3, seed=seed).search(
            model, (X, Y), "kernel"
        )
        for seed in (1, 1, 2)
    ]
    for run in runs:
        assert len(run.best) == 9 and run.best == sorted(run.best)
    assert runs[0].best == runs[1].best != runs[2].best
    for name, mask in runs[0].masks.items():
        np.testing.assert_array_equal(mask, runs[1].masks[name])


def test_anwar_2017_equals_exhaustive_search():
    """Of the 2^6 masks of six filters, the best of those with the asked-for ratio."""
    model = model_of(metrics=())
    masks = [np.array(bits, bool) for bits in itertools.product([0, 1], repeat=6)]
    masks = [mask for mask in masks if mask.sum() == 3]
    losses = [by_hand(model, mask) for mask in masks]
    found = kc.pruning.ParticleFilter(40, 6, ratio=0.5, mutation=0.4).search(model, (X, Y))
    assert found.fitness == pytest.approx(-min(losses), abs=1e-5)
    np.testing.assert_array_equal(found.masks["stem"], masks[int(np.argmin(losses))])


def test_bad_arguments_are_refused():
    search = kc.pruning.RandomMaskSearch
    for options, message in (
        ({"trials": 0}, "`trials` must be a positive integer"),
        ({"ratio": 1.0}, "`ratio` must be a number"),
        ({"granularity": "filters"}, "Did you mean 'filter'"),
    ):
        with pytest.raises(ValueError, match=message):
            search(**options)
    for options in ({"particles": 0}, {"iterations": 0}, {"mutation": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
            kc.pruning.ParticleFilter(**options)
    with pytest.raises(ValueError, match="`monitor` must be one of.*accuracy"):
        search(monitor="auc").search(model_of(), (X, Y))
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="is not compiled"):
        search().search(plain, (X, Y))
    plain.compile("sgd", "mse")
    data = (np.ones((2, 4)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="has no convolution"):
        search(granularity="kernel").search(plain, data)
    with pytest.raises(ValueError, match="`granularity` must be one of"):
        kc.pruning.ParticleFilter().search(plain, data, "weight")
