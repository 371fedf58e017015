"""Distiller: paired inputs, samples without labels, several teachers, teachers that train."""

import keras
import numpy as np
import pytest

import keras_compress as kc

kd = kc.distillation
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.integers(0, 3, 32)
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# XLA compiles slowly on the TensorFlow backend, and JAX does not run a step without it.
JIT = keras.backend.backend() == "jax"


def net(width=4, inputs=6, name="net", tail=(), outputs=3):
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            keras.layers.Dense(width, activation="relu", name="mid"),
            keras.layers.Dense(outputs, name="logits"),
            *tail,
        ],
        name=name,
    )


def copy(model):
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    return new


def equal(before, after):
    return [bool((a == b).all()) for a, b in zip(before, after, strict=True)]


def test_cross_modal_each_model_sees_its_own_input_only():
    """A perturbed input moves what depends on it, and nothing else; no label is needed."""
    teacher, student = net(8, 6, "teacher"), net(8, 2)
    loss = [kd.LogitsDistillation(4.0), kd.Hint("mid", "mid", adapter=None)]
    distiller = kd.Distiller(teacher, student, loss, alpha=1.0, inputs="paired")
    depth = X[:, :2] + 1
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=JIT)
    hidden = [
        keras.ops.convert_to_numpy(m.get_layer("mid")(x)).astype("float64")
        for m, x in ((teacher, X), (student, depth))
    ]

    def hint(rgb, depth):
        x = {"teacher": rgb, "student": depth}
        return distiller.evaluate(x, batch_size=32, verbose=0, return_dict=True)["hint_loss"]

    want = 0.5 * np.square(hidden[0] - hidden[1]).sum(1).mean()
    assert hint(X, depth) == pytest.approx(want, rel=1e-5)
    assert hint(X + 1, depth) != pytest.approx(want, rel=1e-3)
    both = distiller.predict({"teacher": X, "student": depth}, verbose=0)
    other = distiller.predict({"teacher": X + 1, "student": depth}, verbose=0)
    np.testing.assert_array_equal(both, other)
    np.testing.assert_array_equal(both, distiller.predict(depth, verbose=0))
    with pytest.raises(ValueError, match=r"inputs are \{'teacher'.*keys \['student', 'tea'\]"):
        distiller.evaluate({"tea": X, "student": depth}, verbose=0)


def test_cross_modal_layers_above_the_matched_one_stay_untouched(tmp_path):
    teacher, student = net(8, 6, "teacher"), net(4, 2)
    hint = kd.Hint("mid", "mid")
    distiller = kd.Distiller(teacher, student, hint, alpha=1.0, inputs="paired")
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    distiller.compile(optimizer, jit_compile=JIT)
    before = student.get_weights()
    distiller.fit({"teacher": X, "student": X[:, :2]}, verbose=0)
    assert equal(before, student.get_weights()) == [False, False, True, True]
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert loaded.inputs_kind == "paired"


@pytest.mark.parametrize("kind", ["sparse", "one_hot", "regression"])
def test_samples_without_label_have_no_part_in_the_hard_loss(kind):
    """Loss, weights of samples and metrics equal those of the labelled samples alone."""
    mark, loss, metric = -1, CROSSENTROPY, "sparse_categorical_accuracy"
    labels, weights = Y.astype("float32"), RNG.uniform(0.5, 2, 32).astype("float32")
    if kind == "one_hot":
        labels = np.eye(3, dtype="float32")[Y]
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        metric = "categorical_accuracy"
    elif kind == "regression":
        mark, loss, metric = float("nan"), "mse", "mae"
        labels = RNG.normal(size=(32, 3)).astype("float32")
    missing = RNG.random(32) < 0.5
    marked = labels.copy()
    marked[missing] = mark
    student = net()
    hint = kd.Hint("mid", "mid")
    distiller = kd.Distiller(net(6, name="t"), student, hint, alpha=0.3, unlabeled=mark)
    distiller.compile(keras.optimizers.SGD(0.0), loss, metrics=[metric], jit_compile=JIT)
    got = distiller.evaluate(
        X, marked, sample_weight=weights, batch_size=32, verbose=0, return_dict=True
    )
    student.compile("sgd", loss, metrics=[metric], jit_compile=JIT)
    want = student.evaluate(
        X[~missing], labels[~missing], sample_weight=weights[~missing], verbose=0, return_dict=True
    )
    assert got["student_loss"] == pytest.approx(want["loss"], rel=1e-5)
    assert got[metric] == pytest.approx(want[metric], rel=1e-5)
    total = 0.3 * got["distillation_loss"] + 0.7 * want["loss"]
    assert got["loss"] == pytest.approx(total, rel=1e-5)
    marked[:] = mark
    assert distiller.evaluate(X, marked, verbose=0, return_dict=True)["student_loss"] == 0


def test_unlabelled_samples_train_on_the_teacher_alone():
    teacher = net(6, name="t")
    student = net()
    alone = copy(student)
    marked = np.full(32, -1)
    for model, y, options in (
        (kd.Distiller(teacher, student, alpha=0.5, unlabeled=-1), marked, {}),
        (kd.Distiller(teacher, alone, alpha=1.0), Y, {}),
    ):
        rate = 0.2 if model.alpha == 0.5 else 0.1
        model.compile(keras.optimizers.SGD(rate), CROSSENTROPY, jit_compile=JIT)
        model.fit(X, y, batch_size=32, shuffle=False, verbose=0, **options)
    for a, b in zip(student.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("tail", [(), (keras.layers.Softmax(),)], ids=["logits", "probabilities"])
def test_an_ensemble_gives_the_mean_of_its_members(tail, tmp_path):
    members = [net(3 + i, name=f"m{i}", tail=[type(t)() for t in tail]) for i in range(3)]
    distiller = kd.Distiller(members, net(), temperature=2.0, alpha=1.0)
    ensemble = distiller.teacher
    want = np.mean([m.predict(X, verbose=0) for m in members], axis=0)
    np.testing.assert_allclose(ensemble.predict(X, verbose=0), want, atol=1e-6)
    assert distiller.distillation_losses[0].teacher_from_logits is not bool(tail)
    assert not any(m.trainable for m in members)
    ensemble.save(tmp_path / "ensemble.keras")
    again = keras.models.load_model(tmp_path / "ensemble.keras")
    assert type(again) is kd.Ensemble
    np.testing.assert_allclose(again.predict(X, verbose=0), want, atol=1e-6)


def test_joint_training_of_the_teacher():
    """It goes as the teacher's own training would: the soft loss's gradient is the student's."""
    teacher, student = net(8, name="t"), net()
    alone = copy(teacher)
    before = student.get_weights()
    distiller = kd.Distiller(
        teacher,
        student,
        [kd.LogitsDistillation(2.0), kd.Hint("mid", "mid")],
        alpha=1.0,
        train_teacher=True,
        teacher_loss_weight=0.5,
    )
    distiller.compile(keras.optimizers.SGD(0.2), CROSSENTROPY, jit_compile=JIT)
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    history = distiller.fit(X, Y, **options).history
    alone.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, jit_compile=JIT)
    own = alone.fit(X, Y, **options).history
    np.testing.assert_allclose(history["teacher_loss"], own["loss"], rtol=1e-5)
    for a, b in zip(teacher.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    total = np.array(history["distillation_loss"]) + 0.5 * np.array(history["teacher_loss"])
    np.testing.assert_allclose(history["loss"], total, rtol=1e-5)
    assert not all(equal(before, student.get_weights()))


def test_teacher_and_student_may_share_layers_that_train():
    inputs = keras.Input((6,))
    low = keras.layers.Dense(4, activation="relu", name="low")(inputs)
    light = keras.Model(inputs, keras.layers.Dense(3, name="light")(low), name="light")
    deep = keras.layers.Dense(8, activation="relu")(low)
    booster = keras.Model(inputs, keras.layers.Dense(3)(deep), name="booster")
    with pytest.raises(ValueError, match="shares weights"):
        kd.Distiller(booster, light)
    distiller = kd.Distiller(booster, light, train_teacher=True)
    distiller.compile("sgd", CROSSENTROPY, jit_compile=JIT)
    distiller.fit(X, Y, verbose=0)
    assert len(distiller.trainable_variables) == 2 + 2 + 4


class WithExtra(kd.Distiller):
    """Adds a layer with an optimizer of its own, and a loss that only it sees."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = keras.layers.Dense(1)
        self.head.build((None, 3))

    def compile(self, optimizer="sgd", loss=None, **kwargs):
        group = kd.OptimizerGroup(optimizer, [keras.optimizers.SGD(1.0)])
        group.assign_to(0, self.head.trainable_variables)
        super().compile(group, loss, **kwargs)

    def extra_loss(self, batch):
        outputs = keras.ops.stop_gradient(batch.y_pred)
        return keras.ops.mean(keras.ops.square(self.head(outputs) - 1.0))


def test_a_subclass_adds_a_loss_and_an_optimizer():
    teacher, student = net(8, name="t"), net()
    twin = copy(student)
    distiller = WithExtra(teacher, student, alpha=1.0)
    kernel, bias = (keras.ops.convert_to_numpy(v) for v in distiller.head.weights)
    outputs = student(X)
    outputs = keras.ops.convert_to_numpy(outputs)
    distiller.compile(keras.optimizers.SGD(0.1), jit_compile=JIT)
    distiller.fit(X, batch_size=32, verbose=0)
    plain = kd.Distiller(teacher, twin, alpha=1.0)
    plain.compile(keras.optimizers.SGD(0.1), jit_compile=JIT)
    plain.fit(X, batch_size=32, verbose=0)
    for a, b in zip(student.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    error = 2 * (outputs @ kernel + bias - 1) / 32
    got = [keras.ops.convert_to_numpy(v) for v in distiller.head.weights]
    np.testing.assert_allclose(got[0], kernel - outputs.T @ error, atol=1e-4)
    np.testing.assert_allclose(got[1], bias - error.sum(0), atol=1e-4)


def frozen(model):
    model.trainable = False
    return model


BAD = {
    "inputs": (lambda: {"inputs": "both"}, "`inputs`.*'paired'"),
    "unlabeled": (lambda: {"unlabeled": "no"}, "`unlabeled`"),
    "teacher_weight": (lambda: {"teacher_loss_weight": -1}, "`teacher_loss_weight`"),
    "frozen": (lambda: {"teacher": frozen(net(name="t")), "train_teacher": True}, "to train"),
    "same_names": (lambda: {"teacher": [net(), net()]}, "different names"),
    "no_member": (lambda: {"teacher": []}, "at least one"),
    "kinds": (
        lambda: {"teacher": [net(name="a"), net(name="b", tail=[keras.layers.Softmax()])]},
        "softmax probabilities and some do not",
    ),
    "members": (lambda: {"teacher": [net(name="a"), net(name="b", outputs=4)]}, "same outputs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        kd.Distiller(**{"teacher": net(name="t"), "student": net(name="s"), **make()})
