"""Sau and Balasubramanian: noise on the teacher's logits."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
TEACHER = RNG.normal(0, 2, (400, 5)).astype("float32")
STUDENT = RNG.normal(0, 2, (400, 5)).astype("float32")
NoisyTeacher = kc.distillation.NoisyTeacher


def base():
    return kc.distillation.LogitRegression(normalize=False)


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"fraction": 0.0}], ids=str)
@pytest.mark.parametrize("inner", [base(), kc.distillation.LogitsDistillation(3.0)])
def test_without_noise_it_is_the_base_loss(inner, options):
    loss = NoisyTeacher(inner, **options)
    want = float(inner.compute_loss(TEACHER, STUDENT))
    assert float(loss.compute_loss(TEACHER, STUDENT)) == pytest.approx(want, rel=1e-6)


def test_fraction_of_the_samples_is_perturbed():
    loss = NoisyTeacher(base(), fraction=0.3, sigma=0.5, seed=1)
    ones = np.ones((4000, 6), "float32")
    noisy = keras.ops.convert_to_numpy(loss.perturb(ones))
    changed = (noisy != 1).any(1)
    assert changed.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 4000))
    # All logits of a perturbed sample, each by its own draw.
    noise = noisy[changed] - 1
    assert (noise != 0).all()
    assert noise.std() == pytest.approx(0.5, rel=0.05) and abs(noise.mean()) < 0.03
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.15


def test_noise_is_relative_to_the_logit():
    loss = NoisyTeacher(base(), fraction=1.0, sigma=0.3, seed=1)
    again = NoisyTeacher(base(), fraction=1.0, sigma=0.3, seed=1)
    one, ten = (
        keras.ops.convert_to_numpy(m.perturb(s * TEACHER)) for m, s in ((loss, 1), (again, 10))
    )
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-5)


def test_noise_is_drawn_anew_and_left_out_in_evaluation():
    loss = NoisyTeacher(base(), seed=0)
    draws = {float(loss.compute_loss(TEACHER, STUDENT)) for _ in range(4)}
    assert len(draws) == 4
    want = float(base().compute_loss(TEACHER, STUDENT))
    assert float(loss.compute_loss(TEACHER, STUDENT, training=False)) == want


def test_expected_loss_grows_by_the_variance_of_the_noise():
    """E ||(1 + xi) z - s||^2 = ||z - s||^2 + fraction sigma^2 ||z||^2."""
    loss = NoisyTeacher(base(), fraction=0.6, sigma=0.4, seed=0)
    got = np.mean([float(loss.compute_loss(TEACHER, STUDENT)) for _ in range(60)])
    plain = float(base().compute_loss(TEACHER, STUDENT))
    want = 0.6 * 0.4**2 * np.square(TEACHER).mean()
    assert got - plain == pytest.approx(want, rel=0.1)


def net(width):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(3)]
    )


def test_in_the_distiller_each_batch_has_its_noise_and_evaluation_none():
    """A student at rest: the same batch, and the loss changes by the noise alone."""
    teacher, student = net(8), net(2)
    loss = NoisyTeacher(base(), fraction=1.0, sigma=0.5, seed=3)
    distiller = kc.distillation.Distiller(teacher, student, loss, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    x = RNG.normal(size=(16, 4)).astype("float32")
    history = distiller.fit(x, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert len(set(history)) == 4
    z_t, z_s = (m.predict(x, verbose=0) for m in (teacher, student))
    for _ in range(2):
        value = distiller.evaluate(x, batch_size=16, verbose=0, return_dict=True)["loss"]
        assert value == pytest.approx(np.square(z_t - z_s).mean(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_it_runs_in_keras_distiller():
    teacher, student = net(8), net(2)
    distiller = keras.distillation.Distiller(
        teacher, student, [NoisyTeacher(base(), sigma=0.0)], student_loss_weight=0.0
    )
    distiller.compile("sgd", "mse")
    x = RNG.normal(size=(16, 4)).astype("float32")
    z_t, z_s = (m.predict(x, verbose=0) for m in (teacher, student))
    got = float(distiller.compute_loss(x, np.zeros((16, 3))))
    assert got == pytest.approx(np.square(z_t - z_s).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoisyTeacher("mse"), "`base_loss` must be a keras.distillation"),
        (lambda: NoisyTeacher(kc.distillation.Hint("a", "b")), "adapter=None"),
        (lambda: NoisyTeacher(base(), fraction=1.1), "`fraction`"),
        (lambda: NoisyTeacher(base(), sigma=-1), "`sigma`"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_config_round_trip():
    loss = NoisyTeacher(kc.distillation.LogitRegression("a", "b"), 0.2, 0.1, seed=4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is NoisyTeacher
    assert type(again.base_loss) is kc.distillation.LogitRegression
    assert (again.fraction, again.sigma, again.seed) == (0.2, 0.1, 4)
    assert (again.teacher_layer_name, again.student_layer_name) == ("a", "b")
