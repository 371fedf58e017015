"""Apprentice: what each scheme trains, and from where."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.integers(0, 3, 16)
STEP = {"jit_compile": True} if keras.backend.backend() == "jax" else {"run_eagerly": True}
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(name="net", units=8):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(units, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ],
        name=name,
    )


def ternary(units=8):
    return keras.Sequential(
        [
            keras.Input((6,)),
            kc.layers.QuantDense(
                units, activation="relu", kernel_quantizer=kc.quantizers.Ternary(), name="hidden"
            ),
            keras.layers.Dense(3, name="logits"),
        ],
        name="student",
    )


def make(scheme, teacher):
    if scheme == "C":
        return kc.distillation.Apprentice(
            teacher, scheme="C", quantizer=kc.quantizers.Ternary(), layers="hidden", temperature=2.0
        )
    return kc.distillation.Apprentice(
        teacher, ternary(), scheme, temperature=2.0, alpha=0.4, teacher_loss_weight=0.7
    )


def compiled(apprentice, rate=0.1):
    apprentice.compile(keras.optimizers.SGD(rate), CROSSENTROPY, **STEP)
    return apprentice


def moved(before, model):
    return [bool((a != b).any()) for a, b in zip(before, model.get_weights(), strict=True)]


@pytest.mark.parametrize("scheme", ["A", "B", "C"])
def test_scheme_a_updates_the_teacher_b_and_c_do_not(scheme):
    teacher = net("teacher")
    apprentice = compiled(make(scheme, teacher))
    student = apprentice.student
    before = teacher.get_weights(), student.get_weights()
    apprentice.fit(X, Y, batch_size=16, verbose=0)
    assert moved(before[0], teacher) == [scheme == "A"] * 4
    assert all(moved(before[1], student)[:4])


@pytest.mark.parametrize("scheme", ["A", "B"])
def test_loss_of_a_batch_equals_numpy(scheme):
    teacher = net("teacher")
    apprentice = compiled(make(scheme, teacher))
    got = apprentice.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True)["loss"]
    z_t, z_s = (m.predict(X, verbose=0).astype("float64") for m in (teacher, apprentice.student))
    hard = [-log_softmax(z, -1)[np.arange(16), Y].mean() for z in (z_t, z_s)]
    soft = 4 * rel_entr(softmax(z_t / 2, -1), softmax(z_s / 2, -1)).sum(-1).mean()
    want = (0.7 * hard[0] if scheme == "A" else 0) + 0.6 * hard[1] + 0.4 * soft
    assert got == pytest.approx(want, rel=1e-4)


def test_scheme_c_starts_from_the_float_weights_and_its_forward_is_quantised():
    teacher = net("teacher")
    student = make("C", teacher).student
    for name in ("hidden", "logits"):
        weights = [m.get_layer(name).get_weights()[:2] for m in (teacher, student)]
        for a, b in zip(*weights, strict=True):
            np.testing.assert_array_equal(a, b)
    # What a ternary kernel can be at best: each unit's own scale times -1, 0 or 1.
    kernel, bias = student.get_layer("hidden").expand().get_weights()
    for unit in kernel.T:
        assert len(np.unique(np.abs(unit[unit != 0]).round(6))) == 1
    head = teacher.get_layer("logits").get_weights()
    want = np.maximum(X @ kernel + bias, 0) @ head[0] + head[1]
    np.testing.assert_allclose(student.predict(X, verbose=0), want, atol=1e-5)
    assert not np.allclose(teacher.predict(X, verbose=0), want, atol=1e-2)


def test_a_given_student_of_scheme_c_is_taken_as_it_is():
    teacher = net("teacher")
    student = kc.quantizers.apply(teacher, kc.quantizers.Uniform(4))
    before = student.get_weights()
    apprentice = kc.distillation.Apprentice(teacher, student, "C")
    assert apprentice.student is student and not any(moved(before, student))


@pytest.mark.parametrize("scheme", ["A", "C"])
def test_keras_file_brings_it_back(scheme, tmp_path):
    apprentice = compiled(make(scheme, net("teacher")))
    apprentice.fit(X, Y, batch_size=16, verbose=0)
    apprentice.save(tmp_path / "apprentice.keras")
    loaded = keras.models.load_model(tmp_path / "apprentice.keras")
    assert loaded.scheme == scheme and loaded.temperature == 2.0
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    losses = [m.fit(X, Y, **options).history["loss"] for m in (apprentice, loaded)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


BAD = {
    "scheme": (lambda: {"scheme": "D"}, "`scheme` must be one of 'A', 'B', 'C'"),
    "student_a": (lambda: {"scheme": "A"}, "'A' needs a `student`"),
    "no_quantizer": (lambda: {"scheme": "C"}, "'C' needs a `quantizer`"),
    "both": (
        lambda: {"student": ternary(), "scheme": "C", "quantizer": "ternary"},
        "with a `student` leave them out",
    ),
    "float": (lambda: {"student": net("s")}, "no quantised layer"),
    "other": (lambda: {"student": ternary(4), "scheme": "C"}, r"'hidden'.*\(6, 8\)"),
    "no_model": (lambda: {"student": 3}, "`student` must be a keras.Model"),
    "teacher": (lambda: {"teacher": 3, "student": ternary()}, "`teacher` must be a keras.Model"),
    "temperature": (lambda: {"student": ternary(), "temperature": 0}, "`temperature`"),
    "alpha": (lambda: {"student": ternary(), "alpha": 2}, "`alpha`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    build, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        kc.distillation.Apprentice(**{"teacher": net("t"), **build()})
