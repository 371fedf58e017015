"""Sobolev training, and attention transfer by input gradients."""

import keras
import numpy as np
import pytest

import keras_compress as kc

kd = kc.distillation
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 5)).astype("float32")
Y = RNG.integers(0, 3, 8)
# Tracing takes longer than these few steps; on JAX, the stateless step is what is tested.
STEP = {"jit_compile": True} if keras.backend.backend() == "jax" else {"run_eagerly": True}
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(*layers, name="net"):
    return keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(3)], name=name)


def curved(name):
    return net(keras.layers.Dense(6, activation="tanh"), name=name)


def weights(model):
    return [keras.ops.convert_to_numpy(w).astype("float64") for w in model.weights]


def loss_of(distiller, x=X, y=None):
    loss = None if distiller.alpha == 1 else CROSSENTROPY
    distiller.compile(keras.optimizers.SGD(0.0), loss, **STEP)
    result = distiller.evaluate(x, y, batch_size=len(x), verbose=0, return_dict=True)
    return result["distillation_loss"]


def test_sobolev_of_linear_models_is_the_distance_of_their_matrices():
    """|| (W_S - W_T)' v ||^2 for random unit v: || W_S - W_T ||^2 / d on average."""
    teacher, student = net(name="teacher"), net()
    x = RNG.normal(size=(20000, 5)).astype("float32")
    loss = kd.Sobolev(value_weight=0.0, seed=0)
    got = loss_of(kd.Distiller(teacher, student, loss, alpha=1.0), x)
    want = np.square(weights(teacher)[0] - weights(student)[0]).sum() / 5
    assert got == pytest.approx(want, rel=0.03)


def values(model, x):
    kernel, bias, last, end = weights(model)
    return np.tanh(x @ kernel + bias) @ last + end


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("outputs", ["raw", "log_softmax"])
def test_sobolev_equals_finite_differences(outputs, monkeypatch):
    directions = [RNG.normal(size=X.shape) for _ in range(2)]
    directions = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in directions]
    given = iter([keras.ops.cast(v, "float32") for v in directions])
    monkeypatch.setattr(
        "keras_compress.distillation.sobolev._unit_vectors", lambda inputs, seed: next(given)
    )
    teacher, student = curved("teacher"), curved("student")
    loss = kd.Sobolev(order=2, weight=[0.5, 0.25], value_weight=2.0, outputs=outputs)
    distiller = kd.Distiller(teacher, student, loss, alpha=1.0)
    batch = kd.Batch(teacher_inputs=X, student_inputs=X)
    got = float(loss.model_loss(teacher, student, batch))
    f = log_softmax if outputs == "log_softmax" else lambda z: z
    x, (v, w), h = X.astype("float64"), directions, 1e-3

    def first(model, x):
        return (f(values(model, x + h * v)) - f(values(model, x - h * v))) / (2 * h)

    terms = [
        (2.0, [f(values(m, x)) for m in (teacher, student)]),
        (0.5, [first(m, x) for m in (teacher, student)]),
        (0.25, [(first(m, x + h * w) - first(m, x - h * w)) / (2 * h) for m in (teacher, student)]),
    ]
    want = sum(weight * np.square(a - b).sum(1).mean() for weight, (a, b) in terms)
    assert got == pytest.approx(want, rel=1e-3)
    assert distiller.student is student


def test_sobolev_of_equal_models_is_0_and_trains_the_student_only():
    teacher, student = curved("teacher"), curved("student")
    student.set_weights(teacher.get_weights())
    loss = kd.Sobolev(projections=2, seed=1)
    assert loss_of(kd.Distiller(teacher, student, loss, alpha=1.0)) == pytest.approx(0, abs=1e-10)
    student = curved("student")
    distiller = kd.Distiller(teacher, student, loss, alpha=1.0)
    before = teacher.get_weights()
    distiller.compile(keras.optimizers.Adam(0.03), **STEP)
    history = distiller.fit(X, epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.3 * history[0]
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sobolev_draws_other_directions_each_batch():
    teacher, student = net(name="teacher"), net()
    distiller = kd.Distiller(teacher, student, kd.Sobolev(seed=3, value_weight=0.0), alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0), **STEP)
    losses = distiller.fit(X, epochs=3, verbose=0).history["loss"]
    assert len(set(losses)) == 3


def gradient_maps(model, x, y):
    """dL/dx of each sample's cross-entropy, by hand."""
    kernel, bias, last, end = weights(model)
    hidden = np.tanh(x @ kernel + bias)
    z = hidden @ last + end
    error = np.exp(log_softmax(z)) - np.eye(3)[y]
    return (error @ last.T * (1 - hidden**2)) @ kernel.T


def test_attention_transfer_of_gradients_equals_numpy():
    teacher, student = curved("teacher"), curved("student")
    loss = kd.AttentionTransfer(mode="gradient")
    distiller = kd.Distiller(teacher, student, loss, alpha=0.5)
    got = loss_of(distiller, X, Y)
    maps = [gradient_maps(m, X.astype("float64"), Y) for m in (teacher, student)]
    want = np.linalg.norm(maps[0] - maps[1], axis=1).mean()
    assert got == pytest.approx(want, rel=1e-4)
    student.set_weights(teacher.get_weights())
    assert loss_of(distiller, X, Y) == pytest.approx(0, abs=1e-6)


def test_attention_transfer_of_gradients_trains():
    teacher, student = curved("teacher"), curved("student")
    loss = kd.AttentionTransfer(mode="gradient")
    distiller = kd.Distiller(teacher, student, loss, alpha=0.9)
    distiller.compile(keras.optimizers.Adam(0.05), CROSSENTROPY, **STEP)
    history = distiller.fit(X, Y, epochs=40, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.5 * history[0]


def embedded(name):
    inputs = keras.Input((5,))
    x = keras.layers.Flatten()(keras.layers.Embedding(7, 2)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(x), name=name)


def integers(name):
    inputs = keras.Input((5,), dtype="int32")
    x = keras.ops.cast(inputs, "float32")
    return keras.Model(inputs, keras.layers.Dense(3)(x), name=name)


@pytest.mark.parametrize("loss", [kd.Sobolev(), kd.AttentionTransfer(mode="gradient")])
@pytest.mark.parametrize("make", [embedded, integers])
def test_inputs_without_a_derivative_are_refused(loss, make):
    with pytest.raises(ValueError, match="'t' has no derivative by its inputs"):
        kd.Distiller(make("t"), make("s"), loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.Sobolev(order=3), "`order`.*from 1 to 2"),
        (lambda: kd.Sobolev(projections=0), "`projections`"),
        (lambda: kd.Sobolev(weight=[1.0, 2.0]), "each of the 1 orders"),
        (lambda: kd.Sobolev(outputs="softmax"), "'log_softmax'"),
        (lambda: kd.AttentionTransfer("a", "b", mode="gradient"), "takes no layers"),
        (lambda: kd.AttentionTransfer(mode="both"), "'gradient'"),
        (lambda: kd.Sobolev().compute_loss(X, X), "kc.distillation.Distiller"),
        (
            lambda: kd.AttentionTransfer(mode="gradient").compute_loss(X, X),
            "kc.distillation.Distiller",
        ),
        (
            lambda: kd.Distiller(
                net(name="teacher"),
                keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, "softmax")]),
                kd.Sobolev(outputs="log_softmax"),
            ),
            "ends in a softmax",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "loss",
    [kd.Sobolev(2, 3, [1.0, 0.5], 0.1, "log_softmax", 4), kd.AttentionTransfer(mode="gradient")],
)
def test_config_round_trip(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
