"""Stages of a Distiller: what is trained when, weights that change, files and resuming."""

import keras
import numpy as np
import pytest

import keras_compress as kc

kd = kc.distillation
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.integers(0, 3, 32)
# Tracing takes longer than these few steps; on JAX, the stateless step is what is tested.
STEP = {"jit_compile": True} if keras.backend.backend() == "jax" else {"run_eagerly": True}
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(width, name="net"):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(width, activation="relu", name="low"),
            keras.layers.Dense(width, name="mid"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1), name="logits"),
        ],
        name=name,
    )


def values(model, *names):
    weights = [w for name in names for w in model.get_layer(name).weights]
    return [keras.ops.convert_to_numpy(w).copy() for w in weights]


def same(before, after):
    return [bool((a == b).all()) for a, b in zip(before, after, strict=True)]


class Watch(keras.callbacks.Callback):
    """Runs a function of the model after each epoch."""

    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.function(self.model))


def fitnets(student, alpha=(0.8, 0.5), teacher=None):
    return kd.Distiller(
        teacher or net(8, "teacher"),
        student,
        stages=[
            kd.Stage(kd.Hint("mid", "mid"), epochs=2),
            kd.Stage(kd.LogitsDistillation(4.0), epochs=3, alpha=alpha),
        ],
    )


def train(distiller, callbacks=(), step=STEP, **options):
    # Momentum and weight decay, to which a gradient of 0 is not enough to keep a weight.
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1)
    distiller.compile(optimizer, CROSSENTROPY, metrics=["accuracy"], **step)
    keras.utils.set_random_seed(1)
    return distiller.fit(X, Y, batch_size=16, verbose=0, callbacks=list(callbacks), **options)


def test_fitnets_stage_1_leaves_later_layers_untouched_and_stage_2_trains_them():
    student = net(4)
    later, lower = ("bn", "logits"), ("low", "mid")
    before = values(student, *later), values(student, *lower)
    watch = Watch(lambda model: (model.stage, values(student, *later), values(student, *lower)))
    distiller = fitnets(student)
    history = train(distiller, [watch], {}, validation_data=(X, Y))
    assert [stage for stage, _, _ in watch.seen] == [0, 0, 1, 1, 1]
    assert all(same(before[0], watch.seen[1][1]))
    assert not any(same(before[1], watch.seen[1][2]))
    assert not any(same(before[0], watch.seen[-1][1]))
    # One fit: epochs in one row, and each loss where it is a part.
    assert history.epoch == [0, 1, 2, 3, 4]
    for prefix in ("", "val_"):
        hint = np.array(history.history[prefix + "hint_loss"])
        soft = np.array(history.history[prefix + "logits_distillation_loss"])
        assert np.isnan(hint).tolist() == [False, False, True, True, True]
        assert np.isnan(soft).tolist() == [True, True, False, False, False]
    # Nothing is left behind on the student.
    assert student.trainable and all(layer.trainable for layer in student.layers)
    assert len(student.trainable_variables) == 8


def test_fitnets_regressor_is_absent_from_the_finalised_student():
    student = net(4)
    distiller = fitnets(student)
    (regressor,) = distiller.adapters
    assert distiller.finalize() is student
    ours = {id(w) for w in distiller.weights}
    assert all(id(w) in ours for w in regressor.weights)
    assert not {id(w) for w in regressor.weights} & {id(w) for w in student.weights}


def test_fitnets_loss_is_0_when_the_student_equals_the_teacher():
    teacher, student = net(4, "teacher"), net(4)
    student.set_weights(teacher.get_weights())
    distiller = kd.Distiller(
        teacher, student, kd.Hint("mid", "mid", adapter="regressor"), alpha=1.0
    )
    (regressor,) = distiller.adapters
    regressor.set_weights([np.eye(4), np.zeros(4)])
    distiller.compile("sgd")
    assert distiller.evaluate(X, verbose=0, return_dict=True)["distillation_loss"] == 0


def test_alpha_goes_linearly_through_a_stage():
    distiller = fitnets(net(4))
    watch = Watch(lambda model: 0.1 * np.square(values(model.student, "logits")[0]).sum())
    distiller.compile(keras.optimizers.SGD(0.0), CROSSENTROPY, **STEP)
    history = distiller.fit(X, Y, batch_size=32, verbose=0, callbacks=[watch]).history
    alphas = np.array([1, 1, 0.8, 0.65, 0.5])
    want = alphas * history["distillation_loss"] + (1 - alphas) * history["student_loss"]
    np.testing.assert_allclose(history["loss"], want + watch.seen, rtol=1e-5)


def test_loss_weights_go_to_0_and_epochs_beyond_the_sum_stay_in_the_last_stage():
    hint = kd.Hint("mid", "mid")
    stage = kd.Stage([hint, kd.LogitsDistillation()], [(1.0, 0.0), 2.0], epochs=3, alpha=1.0)
    distiller = kd.Distiller(net(8), net(4), stages=[stage])
    distiller.compile(keras.optimizers.SGD(0.0), **STEP)
    history = distiller.fit(X, verbose=0, batch_size=32, epochs=4).history
    weight = np.array([1, 0.5, 0, 0])
    want = weight * history["hint_loss"] + 2 * np.array(history["logits_distillation_loss"])
    np.testing.assert_allclose(history["distillation_loss"], want, rtol=1e-5)


def test_a_stage_trains_the_layers_it_names():
    student = net(4)
    stages = [
        kd.Stage(kd.LogitsDistillation(), epochs=1, layers="log*"),
        kd.Stage(alpha=0.0, epochs=1, layers=["low", "mid"]),
    ]
    distiller = kd.Distiller(net(8), student, stages=stages, alpha=0.5)
    names = ("low", "mid", "bn", "logits")
    before = values(student, *names)
    watch = Watch(lambda model: values(student, *names))
    train(distiller, [watch])
    assert same(before, watch.seen[0]) == [True] * 8 + [False] * 2
    assert same(watch.seen[0], watch.seen[1]) == [False] * 4 + [True] * 6


def test_a_loss_in_two_stages_keeps_its_adapter_and_files_bring_all_back(tmp_path):
    hint = kd.Hint("mid", "mid")
    stages = [
        kd.Stage(hint, epochs=1),
        kd.Stage([kd.LogitsDistillation(), hint], [1.0, (0.5, 0.0)], epochs=2, alpha=(0.9, 0.5)),
    ]
    distiller = kd.Distiller(net(8), net(4), stages=stages)
    assert len(distiller.adapters) == 1
    train(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert loaded.stage == 1 and len(loaded.adapters) == 1
    a, b = (m.evaluate(X, Y, verbose=0, return_dict=True) for m in (distiller, loaded))
    assert a == pytest.approx(b, rel=1e-5, nan_ok=True)
    histories = [m.fit(X, Y, batch_size=32, verbose=0).history for m in (distiller, loaded)]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)


class Stop(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise Stop


def test_backup_and_restore_goes_on_in_the_right_stage(tmp_path):
    teacher, start = net(8, "teacher"), net(4).get_weights()

    def run(callbacks):
        keras.utils.set_random_seed(5)
        student = net(4)
        student.set_weights(start)
        distiller = fitnets(student, teacher=teacher)
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        distiller.compile(optimizer, CROSSENTROPY, **STEP)
        history = distiller.fit(X, Y, batch_size=32, verbose=0, callbacks=callbacks)
        return distiller, history

    whole, _ = run([])
    with pytest.raises(Stop):
        run([keras.callbacks.BackupAndRestore(tmp_path), Interrupt()])
    resumed, history = run([keras.callbacks.BackupAndRestore(tmp_path)])
    assert history.epoch == [3, 4] and resumed.stage == 1
    for a, b in zip(whole.student.weights, resumed.student.weights, strict=True):
        a, b = (keras.ops.convert_to_numpy(v) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


HINT = kd.Hint("mid", "mid")
BAD = {
    "none": (lambda: {"stages": []}, "at least one kc.distillation.Stage"),
    "kind": (lambda: {"stages": [HINT]}, "at least one kc.distillation.Stage"),
    "epochs": (lambda: {"stages": [kd.Stage(HINT), kd.Stage(HINT)]}, "needs `epochs`"),
    "both": (lambda: {"stages": [kd.Stage(HINT)], "temperature": 2.0}, "belong to each Stage"),
    "empty": (lambda: {"stages": [kd.Stage([])]}, "`losses`.*at least one"),
    "alpha": (lambda: {"stages": [kd.Stage(HINT, alpha=(0.5, 2))]}, r"alpha\[1\].*\[0, 1\]"),
    "pair": (lambda: {"stages": [kd.Stage(HINT, alpha=(0, 1, 1))]}, r"pair \(start, end\)"),
    "weights": (lambda: {"stages": [kd.Stage(HINT, [1.0, 2.0])]}, "each of the 1 losses"),
    "labels": (lambda: {"stages": [kd.Stage(None, alpha=0.5)]}, "labels alone"),
    "layers": (lambda: {"stages": [kd.Stage(HINT, layers="mod")]}, "mean 'mid'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        kd.Distiller(net(8), net(4), **make())
