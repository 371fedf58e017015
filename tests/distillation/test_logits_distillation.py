"""Hinton's soft targets against numpy and scipy."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

import keras_compress as kc
from keras_compress.distillation.logits_distillation import output_activations
from tests.gradients import gradient

RNG = np.random.default_rng(0)
TEACHER = RNG.normal(0, 3, (6, 5)).astype("float32")
STUDENT = RNG.normal(0, 3, (6, 5)).astype("float32")


def soft_loss(teacher, student, temperature):
    p, q = softmax(teacher / temperature, -1), softmax(student / temperature, -1)
    return temperature**2 * rel_entr(p, q).sum(-1).mean()


@pytest.mark.parametrize("temperature", [0.5, 1, 4, 20])
def test_hinton_equals_numpy(temperature):
    loss = kc.distillation.LogitsDistillation(temperature)
    got = float(loss.compute_loss(TEACHER, STUDENT))
    want = soft_loss(TEACHER.astype("float64"), STUDENT.astype("float64"), temperature)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert float(loss.compute_loss(TEACHER, TEACHER + 7.0)) == pytest.approx(0, abs=1e-4)


def test_hinton_gradient_at_high_temperature_is_the_difference_of_logits():
    """Section 2.1: dC/dz = (z_s - z_t) / (N T^2) for centred logits; the loss has T^2 in it."""
    teacher, student = (z - z.mean(1, keepdims=True) for z in (TEACHER, STUDENT))
    loss = kc.distillation.LogitsDistillation(300.0)
    got = gradient(lambda z: loss.compute_loss(teacher, z), student)
    want = (student - teacher) / teacher.shape[1] / len(teacher)
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def test_hinton_gradient_keeps_its_scale():
    """T = 1 and T = 20 within a factor of 2, for logits of moderate size."""
    teacher, student = TEACHER / 3, STUDENT / 3

    def size(temperature):
        loss = kc.distillation.LogitsDistillation(temperature)
        return np.linalg.norm(gradient(lambda z: loss.compute_loss(teacher, z), student))

    assert 0.5 < size(1.0) / size(20.0) < 2


def test_hinton_gradient_of_a_confident_mistake():
    """p_s - p_t, also where the student's probability is far below float32's rounding."""
    teacher, student = np.array([[0.0, 40.0]], "float32"), np.array([[40.0, 0.0]], "float32")
    loss = kc.distillation.LogitsDistillation(1.0)
    got = gradient(lambda z: loss.compute_loss(teacher, z), student)
    np.testing.assert_allclose(got, [[1.0, -1.0]], atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
def test_hinton_from_logits_and_from_probabilities_agree(kind):
    function = {"softmax": softmax, "log_softmax": log_softmax}[kind]
    options = {
        "teacher_from_logits": kind == "log_softmax",
        "student_from_logits": kind == "log_softmax",
    }
    teacher, student = function(TEACHER, -1), function(STUDENT, -1)
    for temperature in (1.0, 4.0):
        loss = kc.distillation.LogitsDistillation(temperature, **options)
        want = soft_loss(TEACHER, STUDENT, temperature)
        np.testing.assert_allclose(float(loss.compute_loss(teacher, student)), want, rtol=1e-4)
    # The gradient through the softmax is the one of the logits.
    loss = kc.distillation.LogitsDistillation(4.0, **options)
    plain = kc.distillation.LogitsDistillation(4.0)
    got = gradient(
        lambda z: loss.compute_loss(teacher, getattr(keras.ops, kind)(z, axis=-1)), STUDENT
    )
    want = gradient(lambda z: plain.compute_loss(TEACHER, z), STUDENT)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_hinton_computes_half_precision_in_float32():
    big = np.array([[300.0, 0.0, -300.0]], "float16")
    loss = kc.distillation.LogitsDistillation(2.0)
    got = float(loss.compute_loss(big, -big))
    np.testing.assert_allclose(got, soft_loss(big.astype(float), -big.astype(float), 2), rtol=1e-4)
    zero = np.array([[1.0, 0.0]], "float16")
    loss = kc.distillation.LogitsDistillation(2.0, student_from_logits=False)
    assert np.isfinite(float(loss.compute_loss(big[:, :2], zero)))


def test_hinton_several_outputs_are_summed():
    loss = kc.distillation.LogitsDistillation(3.0)
    got = loss.compute_loss(
        {"a": TEACHER, "b": STUDENT[:, :3]}, {"a": STUDENT, "b": TEACHER[:, :3]}
    )
    want = soft_loss(TEACHER, STUDENT, 3) + soft_loss(STUDENT[:, :3], TEACHER[:, :3], 3)
    np.testing.assert_allclose(float(got), want, rtol=1e-4)


def net(units=3, activation=None, tail=()):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(units, activation=activation), *tail]
    )


def test_the_last_activation_is_found():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3)(inputs)
    nested = keras.Model(inputs, net(activation="softmax")(inputs))
    cases = {
        "linear": [
            net(),
            net(tail=[keras.layers.Activation("linear", dtype="float32")]),
            keras.Model(inputs, x),
        ],
        "softmax": [
            net(activation="softmax"),
            net(tail=[keras.layers.Softmax(), keras.layers.Reshape((3, 1))]),
            net(tail=[keras.layers.Activation("softmax")]),
            keras.Model(inputs, keras.ops.softmax(x)),
            nested,
        ],
        "sigmoid": [net(activation="sigmoid"), keras.Model(inputs, keras.ops.sigmoid(x))],
        "unknown": [keras.Model(inputs, x * 2), net(activation="relu")],
    }
    for kind, models in cases.items():
        assert [output_activations(model) for model in models] == [[kind]] * len(models)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "4", None])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be a number in \(0, inf\)"):
        kc.distillation.LogitsDistillation(temperature)


@pytest.mark.parametrize("distiller", [keras.distillation.Distiller, kc.distillation.Distiller])
def test_models_it_cannot_serve_are_refused(distiller):
    def attempt(teacher, student, **options):
        distiller(teacher, student, [kc.distillation.LogitsDistillation(**options)])

    with pytest.raises(ValueError, match="say teacher_from_logits=False"):
        attempt(net(activation="softmax"), net())
    with pytest.raises(ValueError, match="say student_from_logits=True"):
        attempt(net(), net(), student_from_logits=False)
    with pytest.raises(ValueError, match="last activation is sigmoid"):
        attempt(net(), net(activation="sigmoid"))
    with pytest.raises(ValueError, match="one output is constant"):
        attempt(net(1), net(1))
    attempt(net(), net(activation="softmax"), student_from_logits=False)


def test_config_round_trip():
    loss = kc.distillation.LogitsDistillation(2.5, student_from_logits=False)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
