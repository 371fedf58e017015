"""AdversarialDistiller: two losses and two optimizers in one step."""

import keras
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.integers(0, 3, 16)
JIT = keras.backend.backend() == "jax"
STEP = {"jit_compile": True} if JIT else {"run_eagerly": True}
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(name="net", classes=3, tail=()):
    layers = [keras.Input((6,)), keras.layers.Dense(classes, name="logits"), *tail]
    return keras.Sequential(layers, name=name)


def linear():
    """A discriminator whose gradients are short."""
    return keras.layers.Dense(4, name="judge")


def make(weights=(0.4, 0.3), rates=(0.5, 0.2), student=None, loss=CROSSENTROPY):
    distiller = kc.distillation.AdversarialDistiller(
        net("teacher"),
        student or net(),
        linear(),
        logit_weight=weights[0],
        adversarial_weight=weights[1],
    )
    own, judge = (keras.optimizers.SGD(rate) for rate in rates)
    distiller.compile(own, loss, discriminator_optimizer=judge, **STEP)
    return distiller


def numbers(distiller, y=Y):
    """Losses and gradients of a batch, in numpy: of the student, and of the discriminator."""
    v, c = (w.astype("float64") for w in distiller.discriminator.get_weights())
    z_t, z_s = (m.predict(X, verbose=0).astype("float64") for m in _models(distiller))
    one_hot = np.eye(3)[y]
    d_t, d_s = z_t @ v + c, z_s @ v + c

    def class_loss(d):
        return -(one_hot * log_softmax(d[:, 1:], -1)).sum(-1)

    def slope(d, teacher):
        source = expit(d[:, 0]) - teacher
        return np.concatenate([source[:, None], softmax(d[:, 1:], -1) - one_hot], 1) / len(d)

    logit = np.abs(z_t - z_s).mean()
    adversarial = (-np.log(expit(d_s[:, 0])) + class_loss(d_s)).mean()
    judge = (
        -np.log(expit(d_t[:, 0])) - np.log(expit(-d_s[:, 0])) + class_loss(d_t) + class_loss(d_s)
    )
    hard = -(one_hot * log_softmax(z_s, -1)).sum(-1).mean()
    to_z = (softmax(z_s, -1) - one_hot) / 16
    to_z = to_z + distiller.logit_weight * np.sign(z_s - z_t) / z_s.size
    to_z = to_z + distiller.adversarial_weight * slope(d_s, 1.0) @ v.T
    g_t, g_s = slope(d_t, 1.0), slope(d_s, 0.0)
    return {
        "hard": hard,
        "logit_loss": logit,
        "adversarial_loss": adversarial,
        "discriminator_loss": judge.mean(),
        "discriminator_accuracy": ((d_t[:, 0] > 0).mean() + (d_s[:, 0] <= 0).mean()) / 2,
        "student": [X.T @ to_z, to_z.sum(0)],
        "judge": [z_t.T @ g_t + z_s.T @ g_s, (g_t + g_s).sum(0)],
    }


def _models(distiller):
    return distiller.teacher, distiller.student


@pytest.mark.parametrize("rates", [(0.5, 0.2), (0.5, 0.0), (0.0, 0.2)])
def test_one_step_is_each_loss_with_its_own_optimizer(rates):
    """Neither moves in the other's step, and none in the teacher's."""
    distiller = make(rates=rates)
    want = numbers(distiller)
    before = [m.get_weights() for m in (distiller.student, distiller.discriminator)]
    teacher = distiller.teacher.get_weights()
    history = distiller.fit(X, Y, batch_size=16, shuffle=False, verbose=0).history
    names = [name for name in want if name not in ("hard", "student", "judge")]
    for name in names:
        assert history[name][0] == pytest.approx(want[name], rel=1e-4)
    loss = want["hard"] + 0.4 * want["logit_loss"] + 0.3 * want["adversarial_loss"]
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)
    after = [m.get_weights() for m in (distiller.student, distiller.discriminator)]
    for i, part in enumerate(("student", "judge")):
        for old, new, gradient in zip(before[i], after[i], want[part], strict=True):
            if rates[i] == 0:
                np.testing.assert_array_equal(old, new)
            np.testing.assert_allclose(new, old - rates[i] * gradient, atol=1e-5)
    for old, new in zip(teacher, distiller.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_at_equal_logits_the_discriminators_optimum_is_chance():
    distiller = make(rates=(0.0, 0.5))
    distiller.student.set_weights(distiller.teacher.get_weights())
    judge = keras.optimizers.SGD(0.5)
    distiller.compile("sgd", CROSSENTROPY, discriminator_optimizer=judge, jit_compile=JIT)
    distiller.optimizer.learning_rate = 0.0
    first = distiller.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True)
    distiller.fit(np.tile(X, (200, 1)), np.tile(Y, 200), batch_size=16, shuffle=False, verbose=0)
    last = distiller.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True)
    source = distiller.discriminator(distiller.teacher(X))[:, 0]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(source), 0, atol=0.02)
    assert last["discriminator_accuracy"] == 0.5
    # 2 log 2 is left of the source, and what the classes have.
    classes = 2 * (last["adversarial_loss"] - np.log(2))
    assert last["discriminator_loss"] == pytest.approx(2 * np.log(2) + classes, abs=1e-2)
    assert last["discriminator_loss"] < first["discriminator_loss"]


def test_labels_are_the_condition_as_classes_or_one_hot():
    distiller = make(rates=(0.0, 0.0))
    got = distiller.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True)
    other = distiller.evaluate(X, (Y + 1) % 3, batch_size=16, verbose=0, return_dict=True)
    column = distiller.evaluate(X, Y[:, None], batch_size=16, verbose=0, return_dict=True)
    for result, y in ((got, Y), (other, (Y + 1) % 3), (column, Y)):
        want = numbers(distiller, y)
        for name in ("adversarial_loss", "discriminator_loss"):
            assert result[name] == pytest.approx(want[name], rel=1e-5)
    assert got["adversarial_loss"] != pytest.approx(other["adversarial_loss"], rel=1e-3)
    dense = keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller.compile("sgd", dense, **STEP)
    one_hot = distiller.evaluate(X, np.eye(3)[Y], batch_size=16, verbose=0, return_dict=True)
    assert one_hot["loss"] == pytest.approx(got["loss"], rel=1e-5)
    with pytest.raises(ValueError, match=r"one-hot vectors \(batch, 3\); got shape \(16, 2\)"):
        distiller._one_hot(np.zeros((16, 2)))


def test_saved_student_has_no_discriminator_and_files_bring_all_back(tmp_path):
    student = net()
    distiller = kc.distillation.AdversarialDistiller(net("teacher"), student)
    own, judge = keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.01)
    distiller.compile(own, CROSSENTROPY, discriminator_optimizer=judge, **STEP)
    distiller.fit(X, Y, batch_size=16, verbose=0)
    ours = {id(v) for v in student.variables}
    assert not ours & {id(v) for v in distiller.discriminator.variables}
    student.save(tmp_path / "student.keras")
    alone = keras.models.load_model(tmp_path / "student.keras")
    assert [tuple(v.shape) for v in alone.variables] == [(6, 3), (3,)]
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert [type(o).__name__ for o in loaded.optimizer.others] == ["Adam"]
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    histories = [m.fit(X, Y, **options).history for m in (distiller, loaded)]
    for name in ("loss", "discriminator_loss"):
        np.testing.assert_allclose(*(h[name] for h in histories), rtol=1e-4)


def test_a_discriminator_with_batch_normalization_and_dropout_trains():
    """In the student's part it is in inference mode, and its statistics are left alone."""
    layers = [
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5, seed=1),
        keras.layers.Dense(4),
    ]
    judge = keras.Sequential(layers, name="judge")
    distiller = kc.distillation.AdversarialDistiller(net("teacher"), net(), judge)
    distiller.compile("sgd", CROSSENTROPY, **STEP)
    z_t, z_s = (m.predict(X, verbose=0) for m in _models(distiller))
    distiller.fit(X, Y, batch_size=16, verbose=0)
    mean = 0.99 * 0.01 * z_t.mean(0) + 0.01 * z_s.mean(0)
    got = keras.ops.convert_to_numpy(judge.layers[0].moving_mean)
    np.testing.assert_allclose(got, mean, rtol=1e-3, atol=1e-5)


BAD = {
    "softmax": (
        lambda: {"student": net(tail=[keras.layers.Softmax()])},
        "student 'net' must give logits",
    ),
    "classes": (lambda: {"student": net(classes=4)}, "same classes; got teacher: 3 and student: 4"),
    "no_layer": (lambda: {"discriminator": len}, "must be a Keras layer"),
    "width": (lambda: {"discriminator": keras.layers.Dense(2)}, r"\(batch, 4\).*got \(None, 2\)"),
    "untrained": (lambda: {"discriminator": keras.layers.ZeroPadding1D()}, r"must lead from"),
    "logit": (lambda: {"logit_weight": -1}, "`logit_weight`"),
    "adversarial": (lambda: {"adversarial_weight": "a"}, "`adversarial_weight`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    build, message = BAD[case]
    arguments = {"teacher": net("t"), "student": net(), **build()}
    with pytest.raises(ValueError, match=message):
        kc.distillation.AdversarialDistiller(**arguments)
