"""Face neurons (Luo et al.): the choice against brute force, and the loss on the chosen."""

import itertools

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.gradients import gradient

RNG = np.random.default_rng(5)
SelectedNeurons = kc.distillation.SelectedNeurons
select_neurons = kc.distillation.select_neurons


def energy(chosen, features, labels, pairwise):
    """By the class means of one neuron after the other, and numpy's correlations."""
    within = features.copy()
    total = 0.0
    for c in np.unique(labels):
        within[labels == c] -= features[labels == c].mean(0)
    for i in chosen:
        total -= 1 - within[:, i].var() / features[:, i].var()
    for i, j in itertools.combinations(chosen, 2):
        total += pairwise * np.corrcoef(within[:, i], within[:, j])[0, 1] ** 2
    return total


@pytest.mark.parametrize("pairwise", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(4))
def test_energy_of_the_choice_equals_brute_force(seed, pairwise):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 80)
    features = rng.normal(size=(3, 10))[labels] + rng.normal(size=(80, 10)) @ rng.normal(
        size=(10, 10)
    )
    chosen = select_neurons(features, labels, 3, pairwise)
    best = min(energy(c, features, labels, pairwise) for c in itertools.combinations(range(10), 3))
    assert energy(chosen, features, labels, pairwise) == pytest.approx(best, abs=1e-8)


def informative(samples=400, noise=0.5):
    labels = RNG.integers(0, 4, samples)
    signal = RNG.normal(size=(4, 6))[labels] + noise * RNG.normal(size=(samples, 6))
    return signal, labels


def test_copies_are_never_both_chosen():
    """Scaled, shifted and negated ones too; without the pairwise term they are."""
    signal, labels = informative()
    features = np.concatenate([signal, -3 * signal + 1], 1)
    for keep in (2, 4, 6):
        assert len(set(select_neurons(features, labels, keep) % 6)) == keep
    assert len(set(select_neurons(features, labels, 6, pairwise=0.0) % 6)) == 3
    # Functions of the labels alone are no exception.
    exact = np.eye(4)[labels] @ RNG.normal(size=(4, 2))
    features = np.concatenate([exact, exact, RNG.normal(size=(400, 1))], 1)
    assert len(set(select_neurons(features, labels, 2) % 2)) == 2


def test_noise_and_constant_neurons_come_last():
    signal, labels = informative()
    features = np.concatenate([RNG.normal(size=(400, 8)), np.full((400, 2), 3.0), signal], 1)
    np.testing.assert_array_equal(select_neurons(features, labels, 6), range(10, 16))
    assert set(range(10, 16)) < set(select_neurons(features, labels, 9))


def test_attributes_as_labels():
    """Neurons that answer to a factor outside of the attributes (pose) are not chosen."""
    attributes = RNG.integers(0, 2, (300, 3))
    pose = RNG.normal(size=(300, 2))
    noise = 0.3 * RNG.normal(size=(300, 5))
    features = np.concatenate([5 * pose, attributes @ RNG.normal(size=(3, 3))], 1) + noise
    np.testing.assert_array_equal(select_neurons(features, attributes, 3), [2, 3, 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((5, 3, 3)), np.ones(5), 1), "`features` must be finite numbers"),
        ((np.full((5, 3), np.nan), np.ones(5), 1), "`features` must be finite numbers"),
        ((np.ones((5, 3)), np.ones(4), 1), "of the 5 samples"),
        ((np.ones((5, 3)), np.ones(5), 4), "`keep` must be an integer from 1 to 3"),
        ((np.ones((5, 3)), np.ones(5), 1, -1), "`pairwise`"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_neurons(*arguments)


def test_loss_ignores_neurons_that_were_not_selected():
    teacher = RNG.normal(size=(6, 8)).astype("float32")
    student = RNG.normal(size=(6, 3)).astype("float32")
    loss = SelectedNeurons(neurons=[1, 4, 6])
    want = 0.5 * np.square(teacher[:, [1, 4, 6]] - student).sum(1).mean()
    assert float(loss.compute_loss(teacher, student)) == pytest.approx(want, rel=1e-5)
    other = teacher.copy()
    other[:, [0, 2, 3, 5, 7]] = 100
    assert float(loss.compute_loss(other, student)) == pytest.approx(want, rel=1e-5)
    slope = gradient(lambda t: loss.compute_loss(t, student), teacher)
    assert (slope[:, [0, 2, 3, 5, 7]] == 0).all() and (slope[:, [1, 4, 6]] != 0).all()


def net(width, name):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(width, "relu", name="top"), keras.layers.Dense(2)],
        name=name,
    )


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_student_regresses_the_selected_neurons_in_both_distillers():
    x = RNG.normal(size=(40, 4)).astype("float32")
    teacher, student = net(8, "teacher"), net(3, "student")
    activations = [
        keras.ops.convert_to_numpy(keras.Model(m.inputs[0], m.get_layer("top").output)(x))
        for m in (teacher, student)
    ]
    chosen = select_neurons(activations[0], x[:, 0] > 0, 3)
    want = 0.5 * np.square(activations[0][:, chosen] - activations[1]).sum(1).mean()
    loss = SelectedNeurons("top", "top", chosen)
    for cls in (keras.distillation.Distiller, kc.distillation.Distiller):
        distiller = cls(teacher, student, [loss], student_loss_weight=0.0)
        distiller.compile("sgd", "mse")
        assert float(distiller.compute_loss(x, np.zeros((40, 2)))) == pytest.approx(want, rel=1e-4)
    assert not distiller.adapters
    wider = kc.distillation.Distiller(teacher, net(5, "wider"), loss, alpha=1.0)
    assert wider.adapters[0].units == 3


@pytest.mark.parametrize("neurons", [None, [], [0, 0], [-1], [0.5], [[0, 1]], "ab"])
def test_neurons_must_be_indices(neurons):
    with pytest.raises(ValueError, match="`neurons` must be a sequence"):
        SelectedNeurons("a", "b", neurons)


def test_neurons_that_the_layer_does_not_have():
    with pytest.raises(ValueError, match="`neurons` must be below 8.*'top'; got 9"):
        kc.distillation.Distiller(net(8, "t"), net(2, "s"), SelectedNeurons("top", "top", [1, 9]))


def test_config_round_trip():
    loss = SelectedNeurons("a", "b", np.array([3, 1]), adapter=None)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is SelectedNeurons and again.get_config() == loss.get_config()
    assert again.neurons == [3, 1]
