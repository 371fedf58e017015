"""LearningWithoutForgetting: what is trained when, and what the old head is held to."""

import inspect

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.integers(0, 4, 16)
STEP = {"jit_compile": True} if keras.backend.backend() == "jax" else {"run_eagerly": True}
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(tail=(), units=5):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(units, activation="relu", name="low"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Dense(3, name="logits"),
            *tail,
        ],
        name="old",
    )


def make(model, classes=4, name="new_head", **options):
    head = keras.layers.Dense(classes, name=name)
    return kc.distillation.LearningWithoutForgetting(model, head, **options)


def train(distiller, epochs, rate=0.1):
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=0.1)
    distiller.compile(optimizer, CROSSENTROPY, metrics=["accuracy"], **STEP)
    return distiller.fit(X, Y, batch_size=8, epochs=epochs, verbose=0).history


def values(model, *names):
    layers = [model.get_layer(name) for name in names]
    return [keras.ops.convert_to_numpy(w).copy() for layer in layers for w in layer.weights]


def same(before, after):
    return [bool((a == b).all()) for a, b in zip(before, after, strict=True)]


class Watch(keras.callbacks.Callback):
    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.function())


@pytest.mark.parametrize("tail", [(), (keras.layers.Softmax,)], ids=["logits", "probabilities"])
def test_targets_are_of_the_model_before_training_and_the_loss_equals_numpy(tail):
    model = net([layer() for layer in tail])
    recorded = model.predict(X, verbose=0).astype("float64")
    distiller = make(model, alpha=0.3)
    before = model.get_weights()
    train(distiller, 2)
    assert distiller.stage == 1
    assert all(same(before, model.get_weights())) and model.trainable
    np.testing.assert_array_equal(distiller.teacher.predict(X, verbose=0), recorded)
    got = distiller.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True)
    old, new = (z.astype("float64") for z in distiller.student.predict(X, verbose=0))
    assert np.abs(old - recorded).max() > 1e-3
    if tail:
        recorded, old = np.log(recorded), np.log(old)
    soft = 4 * rel_entr(softmax(recorded / 2, -1), softmax(old / 2, -1)).sum(-1).mean()
    hard = -log_softmax(new, -1)[np.arange(16), Y].mean()
    assert got["distillation_loss"] == pytest.approx(soft, rel=1e-3)
    assert got["student_loss"] == pytest.approx(hard, rel=1e-4)
    assert got["loss"] == pytest.approx(0.3 * soft + 0.7 * hard, rel=1e-3)
    assert got["accuracy"] == pytest.approx((new.argmax(-1) == Y).mean())


def test_warmup_changes_only_the_new_head():
    distiller = make(net(), warmup_epochs=2)
    student, rest = distiller.student, ("low", "bn", "logits")
    before = values(student, *rest), values(student, "new_head")
    watch = Watch(lambda: (values(student, *rest), values(student, "new_head")))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1)
    distiller.compile(optimizer, CROSSENTROPY, **STEP)
    distiller.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[watch])
    assert all(same(before[0], watch.seen[1][0]))
    assert not any(same(before[1], watch.seen[0][1]))
    assert not any(same(before[0], watch.seen[2][0]))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_old_head_drifts_less_than_with_plain_fine_tuning_on_two_tasks_of_digits():
    """Digits 0-4, then 5-9 without any data of the first: the old head on its test digits."""
    (x, y), (x_test, y_test) = kc.datasets.digits()
    x, x_test = (a.reshape(len(a), -1).astype("float32") for a in (x, x_test))
    first, second, seen = y < 5, y >= 5, y_test < 5
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((x.shape[1],)),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(5),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01), CROSSENTROPY, jit_compile=False)
    model.fit(x[first], y[first], epochs=8, verbose=0)
    recorded = softmax(model.predict(x_test[seen], verbose=0), -1)
    drifts, losses = [], []
    for alpha in (0.5, 0.0):
        distiller = make(model, 5, alpha=alpha)
        distiller.compile(keras.optimizers.Adam(0.01), CROSSENTROPY, jit_compile=False)
        distiller.fit(x[second], y[second] - 5, epochs=6, verbose=0)
        old, new = distiller.student.predict(x_test, verbose=0)
        drifts.append(rel_entr(recorded, softmax(old[seen], -1)).sum(-1).mean())
        losses.append(-log_softmax(old[seen], -1)[np.arange(seen.sum()), y_test[seen]].mean())
        assert (new[~seen].argmax(-1) + 5 == y_test[~seen]).mean() > 0.9
    assert drifts[0] < 0.5 * drifts[1] and losses[0] < losses[1]


def test_no_old_data_are_asked_for():
    kind = kc.distillation.LearningWithoutForgetting
    names = {n for method in (kind, kind.fit) for n in inspect.signature(method).parameters}
    assert not [name for name in names if "data" in name or "old" in name]


def test_a_third_task_keeps_both_old_outputs_and_files_bring_all_back(tmp_path):
    model = net()
    model.get_layer("low").trainable = False
    frozen = model.get_layer("low").get_weights()
    second = make(model, warmup_epochs=0)
    train(second, 1)
    before = second.student.predict(X, verbose=0)
    head = keras.Sequential([keras.layers.Dense(2, name="a"), keras.layers.Dense(4, name="b")])
    third = kc.distillation.LearningWithoutForgetting(second.student, head, features="low")
    for a, b in zip(before, third.student.predict(X, verbose=0)[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    train(third, 2)
    got = third.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True)
    after = third.student.predict(X, verbose=0)
    soft = sum(
        4 * rel_entr(softmax(a.astype("float64") / 2, -1), softmax(b / 2, -1)).sum(-1).mean()
        for a, b in zip(before, after[:2], strict=True)
    )
    assert got["distillation_loss"] == pytest.approx(soft, rel=1e-3)
    third.save(tmp_path / "third.keras")
    loaded = keras.models.load_model(tmp_path / "third.keras")
    assert loaded.stage == 1 and loaded.features == "low"
    # A layer that the user froze stays so, in files too; momentum comes back with the rest.
    assert all(same(frozen, third.student.get_layer("low").get_weights()))
    assert not loaded.student.get_layer("low").trainable
    assert len(loaded.optimizer.variables) == len(third.optimizer.variables)
    for a, b in zip(after, loaded.student.predict(X, verbose=0), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert loaded.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True) == pytest.approx(
        got, rel=1e-5
    )


def sum_of_two():
    inputs = keras.Input((6,))
    heads = [keras.layers.Dense(3)(inputs) for _ in range(2)]
    return keras.Model(inputs, keras.layers.Add()(heads))


BAD = {
    "model": (lambda: {"model": 3}, "takes a keras.Model; got int"),
    "head": (lambda: {"new_head": 5}, "`new_head` must be a Keras layer.*got new_head=5"),
    "name": (lambda: {"new_head": keras.layers.Dense(2, name="low")}, "has a layer 'low' already"),
    "features": (lambda: {"features": "lwo"}, "no layer features='lwo'. Did you mean 'low'"),
    "unclear": (lambda: {"model": sum_of_two()}, "old head.*not clear.*2 inputs"),
    "sigmoid": (lambda: {"model": net([keras.layers.Activation("sigmoid")])}, "sigmoid"),
    "temperature": (lambda: {"temperature": 0}, "`temperature`"),
    "warmup": (lambda: {"warmup_epochs": -1}, "`warmup_epochs`"),
    "alpha": (lambda: {"alpha": 1}, r"`alpha`.*\[0, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    build, message = BAD[case]
    arguments = {"model": net(), "new_head": keras.layers.Dense(2, name="new"), **build()}
    with pytest.raises(ValueError, match=message):
        kc.distillation.LearningWithoutForgetting(**arguments)
