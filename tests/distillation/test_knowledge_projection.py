"""KnowledgeProjection: which pair is chosen, and how its weight fades."""

import keras
import numpy as np
import pytest

import keras_compress as kc

kd = kc.distillation
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.integers(0, 3, 16)
STEP = {"jit_compile": True} if keras.backend.backend() == "jax" else {"run_eagerly": True}
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PAIRS = [("low", "low"), ("high", "low"), ("high", "high")]


def net(units=4, name="net"):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(units, activation="relu", name="low"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Dense(units, activation="relu", name="high"),
            keras.layers.Dense(3, name="logits"),
        ],
        name=name,
    )


def copy(model):
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    return new


def compiled(distiller, rate=0.05):
    distiller.compile(keras.optimizers.SGD(rate, momentum=0.9), CROSSENTROPY, **STEP)
    return distiller


def give(adapters, values):
    for adapter, value in zip(adapters, values, strict=True):
        adapter.set_weights(value)


OPTIONS = {"batch_size": 8, "shuffle": False, "verbose": 0}


@pytest.fixture(scope="module")
def chosen():
    """A distiller that has selected, all it started from, and its history."""
    teacher, student = net(8, "teacher"), net()
    start = student.get_weights()
    distiller = kd.KnowledgeProjection(
        teacher, student, PAIRS, alpha=0.6, weight=[0.3, 0.1, 0.2], select_epochs=2
    )
    adapters = [adapter.get_weights() for adapter in distiller.adapters]
    assert distiller.chosen is None and distiller.candidate_losses is None
    history = compiled(distiller).fit(X, Y, epochs=3, **OPTIONS).history
    return distiller, start, adapters, history


def hint_alone(chosen, index, alpha, epochs):
    """The same by a Distiller with one hint, from the same weights."""
    distiller, start, adapters, _ = chosen
    student = net()
    student.set_weights(start)
    stage = kd.Stage(kd.Hint(*PAIRS[index]), [[0.3, 0.1, 0.2][index]], alpha=alpha)
    alone = kd.Distiller(distiller.teacher, student, stages=[stage])
    give(alone.adapters, [adapters[index]])
    history = compiled(alone).fit(X, Y, epochs=epochs, **OPTIONS).history
    return student, history


def test_chosen_pair_is_the_argmin_of_the_recorded_losses(chosen):
    """Each loss is that of a hint trained alone, at full weight, from the same weights."""
    distiller = chosen[0]
    want = [hint_alone(chosen, i, 0.6, 2)[1]["loss"][-1] for i in range(3)]
    np.testing.assert_allclose(distiller.candidate_losses, want, rtol=1e-4)
    assert distiller.chosen == PAIRS[int(np.argmin(want))]


def test_after_selection_training_starts_anew_with_the_chosen_pair(chosen):
    """Weights, batch statistics and momentum are set back; the weight fades to 0."""
    distiller, _, _, history = chosen
    index = PAIRS.index(distiller.chosen)
    student, want = hint_alone(chosen, index, (0.6, 0.0), 3)
    np.testing.assert_allclose(history["loss"], want["loss"], rtol=1e-4)
    for a, b in zip(distiller.student.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_projection_vanishes_on_finalise(chosen):
    distiller = chosen[0]
    student = distiller.finalize()
    own = {id(v) for adapter in distiller.adapters for v in adapter.variables}
    assert len(own) == 6 and not own & {id(v) for v in student.variables}
    assert [tuple(w.shape) for w in student.weights] == [tuple(w.shape) for w in net().weights]


def test_files_keep_the_choice(chosen, tmp_path):
    distiller = chosen[0]
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert loaded.chosen == distiller.chosen
    assert loaded.candidate_losses == distiller.candidate_losses
    evaluated = [m.evaluate(X, Y, verbose=0, return_dict=True) for m in (distiller, loaded)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5, nan_ok=True)
    # Nothing is selected again.
    loaded.fit(X, Y, epochs=1, **OPTIONS)
    assert loaded.candidate_losses == distiller.candidate_losses


def test_with_one_candidate_it_equals_hint():
    teacher, student = net(8, "teacher"), net()
    twin = copy(student)
    distiller = kd.KnowledgeProjection(teacher, student, PAIRS[:1], alpha=0.5)
    stage = kd.Stage(kd.Hint(*PAIRS[0]), alpha=(0.5, 0.0))
    hint = kd.Distiller(teacher, twin, stages=[stage])
    give(hint.adapters, [distiller.adapters[0].get_weights()])
    assert distiller.chosen == PAIRS[0]
    losses = [compiled(m).fit(X, Y, epochs=3, **OPTIONS).history["loss"] for m in (distiller, hint)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    for a, b in zip(student.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@keras.saving.register_keras_serializable("tests")
def squared(passed):
    return (1 - passed) ** 2


@pytest.mark.parametrize(
    ("decay", "factors"),
    [
        ("linear", [1, 2 / 3, 1 / 3, 0, 0]),
        ("cosine", [1, 0.75, 0.25, 0, 0]),
        (squared, [1, 4 / 9, 1 / 9, 0, 0]),
    ],
)
def test_weight_of_the_loss_follows_the_decay_to_0(decay, factors):
    """Told from the losses at a learning rate of 0; a function survives its configuration."""
    distiller = kd.KnowledgeProjection(
        net(8, "teacher"), net(), PAIRS[:1], alpha=0.8, decay=decay, decay_epochs=4
    )
    if callable(decay):
        distiller = kd.KnowledgeProjection.from_config(distiller.get_config())
        assert distiller.decay is decay
    history = compiled(distiller, 0.0).fit(X, Y, epochs=5, batch_size=16, verbose=0).history
    hint, hard = (np.array(history[n]) for n in ("distillation_loss", "student_loss"))
    alpha = 0.8 * np.array(factors)
    # Hints are not small here: each epoch's weight can be told.
    assert hint.min() > 0.01
    np.testing.assert_allclose(history["loss"], alpha * hint + (1 - alpha) * hard, rtol=1e-5)


BAD = {
    "none": (lambda: {"candidates": []}, "at least one pair"),
    "no_pair": (lambda: {"candidates": ["low", "high"]}, r"candidates=\['low', 'high'\]"),
    "layer": (lambda: {"candidates": [("low", "lwo")]}, "mean 'low'"),
    "weight": (lambda: {"weight": [1.0, 2.0]}, "each of the 3"),
    "weight_0": (lambda: {"weight": 0}, "`weight`"),
    "alpha": (lambda: {"alpha": 0}, r"`alpha`.*\(0, 1\]"),
    "epochs": (lambda: {"select_epochs": 0}, "`select_epochs`"),
    "decay": (lambda: {"decay": "linera"}, "mean 'linear'"),
    "decay_range": (lambda: {"decay": lambda passed: 2.0}, r"`decay\(share\)`"),
    "decay_epochs": (lambda: {"decay_epochs": 0.5}, "`decay_epochs`"),
    "adapter": (lambda: {"adapter": "conv1x1"}, "no 1x1 convolution"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    build, message = BAD[case]
    arguments = {"candidates": PAIRS, **build()}
    with pytest.raises(ValueError, match=message):
        kd.KnowledgeProjection(net(8), net(), **arguments)


def test_data_that_end_and_losses_that_are_not_finite_are_errors():
    distiller = kd.KnowledgeProjection(net(8), net(), PAIRS[:2])
    batches = ((X, Y) for _ in range(1))
    with pytest.raises(ValueError, match="compile"):
        distiller.fit(X, Y)
    before = distiller.student.get_weights()
    compiled(distiller)
    with pytest.raises(ValueError, match="gone through again.*got a generator"):
        distiller.fit(batches)
    with pytest.raises(ValueError, match="was not finite"):
        distiller.fit(X * np.nan, Y, verbose=0)
    for a, b in zip(before, distiller.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
