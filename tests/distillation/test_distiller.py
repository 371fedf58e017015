"""Distiller: the loss of a step, training, files, and what it leaves alone."""

import inspect

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8, 8, 1)).astype("float32")
Y = RNG.integers(0, 4, 32)
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable("tests")
class Count(keras.layers.Layer):
    """Identity that counts how often it runs (or is traced), and adds a loss."""

    runs = 0

    def call(self, inputs):
        self.runs += 1
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def net(filters, classes=4, name="net", tail=(), regularizer=None, middle=()):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(filters, 3, name="conv1", kernel_regularizer=regularizer),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.Conv2D(2 * filters, 3, name="conv2"),
            *middle,
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(classes, name="logits"),
            *tail,
        ],
        name=name,
    )


def values(variables):
    return [keras.ops.convert_to_numpy(v) for v in variables]


def fit(model, loss=CROSSENTROPY, epochs=2, callbacks=(), labels=Y, optimizer="adam", **options):
    model.compile(optimizer, loss, metrics=["accuracy"] if loss else None, **options)
    keras.utils.set_random_seed(3)
    return model.fit(
        X, labels, batch_size=12, epochs=epochs, callbacks=list(callbacks), verbose=0
    ).history


def all_losses():
    return [
        kc.distillation.LogitsDistillation(4.0),
        kc.distillation.Hint("conv2", "conv2"),
        kc.distillation.AttentionTransfer("conv*", "conv*"),
        keras.distillation.FeatureDistillation("mse", "logits", "logits"),
    ]


def copy(model):
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    return new


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_hinton_loss_of_a_batch_equals_numpy(alpha):
    """alpha * T^2 KL + (1 - alpha) * cross-entropy, and the student's regularizers."""
    teacher = net(6, name="teacher")
    student = net(2, regularizer=keras.regularizers.L2(0.1))
    distiller = kc.distillation.Distiller(teacher, student, temperature=3.0, alpha=alpha)
    distiller.compile("adam", CROSSENTROPY)
    weights = np.linspace(0.5, 2, 32).astype("float32")
    got = distiller.evaluate(
        X, Y, sample_weight=weights, batch_size=32, verbose=0, return_dict=True
    )
    z_t, z_s = (m.predict(X, verbose=0).astype("float64") for m in (teacher, student))
    soft = 9 * rel_entr(softmax(z_t / 3, -1), softmax(z_s / 3, -1)).sum(-1).mean()
    hard = -(weights * log_softmax(z_s, -1)[np.arange(32), Y]).mean()
    penalty = 0.1 * np.square(values([student.get_layer("conv1").kernel])[0]).sum()
    want = alpha * soft + (1 - alpha) * hard + penalty
    np.testing.assert_allclose(got["loss"], want, rtol=1e-4)
    np.testing.assert_allclose(got["total_loss"], want, rtol=1e-4)
    np.testing.assert_allclose(got["student_loss"], hard if alpha < 1 else 0, rtol=1e-4)
    np.testing.assert_allclose(got["distillation_loss"], soft if alpha > 0 else 0, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_alpha_0_equals_plain_training():
    """Same seeds, same weights: regularizers, dropout, batch statistics and sample order too."""
    alone = net(2, regularizer=keras.regularizers.L2(0.01), middle=[Count()])
    student = copy(alone)
    distiller = kc.distillation.Distiller(net(6), student, all_losses(), alpha=0)
    history, plain = (fit(m, optimizer=keras.optimizers.SGD(0.1, 0.9)) for m in (distiller, alone))
    assert history["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert history["accuracy"] == plain["accuracy"]
    # XLA may order sums differently in two programs: a last bit.
    atol = 1e-6 if keras.backend.backend() == "jax" else 0
    for a, b in zip(values(alone.weights), values(student.weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_features_and_shapes_that_differ_and_history():
    teacher, student = net(6, name="teacher"), net(2)
    distiller = kc.distillation.Distiller(
        teacher, student, all_losses(), distillation_loss_weights=[1.0, 0.1, 5.0, 0.2], alpha=0.6
    )
    (adapter,) = distiller.adapters
    before = values(adapter.weights)
    history = fit(distiller, epochs=4)
    names = ["logits_distillation", "hint", "attention_transfer", "feature_distillation"]
    parts = {name: np.array(history[f"{name}_loss"]) for name in names}
    weighted = sum(w * parts[n] for n, w in zip(names, [1.0, 0.1, 5.0, 0.2], strict=True))
    np.testing.assert_allclose(history["distillation_loss"], weighted, rtol=1e-4)
    total = 0.6 * weighted + 0.4 * np.array(history["student_loss"])
    np.testing.assert_allclose(history["loss"], total, rtol=1e-4)
    assert parts["hint"][-1] < parts["hint"][0]
    assert any((a != b).any() for a, b in zip(before, values(adapter.weights), strict=True))
    assert distiller.student is student
    assert not {id(w) for w in adapter.weights} & {id(w) for w in student.weights}


def test_feature_loss_of_a_batch_equals_numpy():
    teacher, student = net(3, name="teacher"), net(2)
    hint = kc.distillation.Hint("conv*", "conv*")
    distiller = kc.distillation.Distiller(teacher, student, hint, alpha=1.0)
    distiller.compile("adam")
    got = distiller.evaluate(X, batch_size=32, verbose=0, return_dict=True)["loss"]
    want = 0
    for name, adapter in zip(("conv1", "conv2"), distiller.adapters, strict=True):
        maps = [
            keras.Model(m.inputs, m.get_layer(name).output).predict(X, verbose=0)
            for m in (teacher, student)
        ]
        kernel, bias = values(adapter.weights)
        difference = maps[0] - (maps[1] @ kernel + bias)
        want += 0.5 * np.square(difference).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_fitnets_stage_1_leaves_later_layers_untouched():
    student = net(2)
    later, hinted = student.get_layer("logits"), student.get_layer("conv2")
    before = values([*later.weights, *hinted.weights])
    hint = kc.distillation.Hint("conv2", "conv2")
    distiller = kc.distillation.Distiller(net(6), student, hint, alpha=1.0)
    fit(distiller, loss=None, labels=None)
    after = values([*later.weights, *hinted.weights])
    changed = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, True]


def test_teacher_is_not_changed():
    teacher, student = net(6), net(2)
    before, flags = values(teacher.variables), values(student.variables)
    fit(kc.distillation.Distiller(teacher, student, all_losses()))
    for a, b in zip(before, values(teacher.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not teacher.trainable and not teacher.trainable_variables
    moving = [(a != b).any() for a, b in zip(flags, values(student.variables), strict=True)]
    assert all(moving[: len(student.weights)])


@pytest.mark.parametrize("losses", [None, all_losses()], ids=["outputs", "features"])
def test_one_forward_of_each_a_step(losses):
    def grown(width, name):
        # Layer by layer, as a loaded model: each layer has been called several times.
        model = keras.Sequential([keras.Input((8, 8, 1))])
        model.add(keras.layers.Conv2D(width, 5, strides=3, name="conv1"))
        model.add(Count(name=name))
        model.add(keras.layers.Conv2D(width, 1, name="conv2"))
        model.add(keras.layers.Flatten())
        model.add(keras.layers.Dense(4, name="logits"))
        return model

    teacher, student = grown(4, "t"), grown(2, "s")
    counts = teacher.get_layer("t"), student.get_layer("s")
    distiller = kc.distillation.Distiller(teacher, student, losses)
    distiller.compile("sgd", CROSSENTROPY, run_eagerly=True)
    distiller.fit(X[:4], Y[:4], verbose=0)
    counts[0].runs = counts[1].runs = 0
    distiller.fit(X, Y, batch_size=16, verbose=0)
    assert [c.runs for c in counts] == [2, 2]
    distiller.evaluate(X, Y, batch_size=16, verbose=0)
    assert [c.runs for c in counts] == [4, 4]
    distiller.predict(X, batch_size=16, verbose=0)
    assert [c.runs for c in counts] == [4, 6]


def test_batch_statistics_move_once_a_step_and_not_in_evaluation():
    student = net(2)
    alone = copy(student)
    moments = [m.get_layer("bn").moving_mean for m in (alone, student)]
    options = {"optimizer": keras.optimizers.SGD(0.0), "epochs": 1}
    fit(alone, **options)
    distiller = kc.distillation.Distiller(net(6), student, all_losses())
    fit(distiller, optimizer=keras.optimizers.SGD(0.0), epochs=1)
    np.testing.assert_allclose(*values(moments), rtol=1e-5)
    distiller.evaluate(X, Y, verbose=0)
    np.testing.assert_allclose(*values(moments), rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"jit_compile": False, "steps_per_execution": 3}], ids=str
)
def test_compiled_steps_equal_eager_ones(options):
    teacher, student = net(6), net(2)
    # XLA draws other random numbers.
    student.get_layer(index=-2).rate = 0.0
    twin = copy(student)
    keras.utils.set_random_seed(0)
    eager = kc.distillation.Distiller(teacher, twin, all_losses())
    keras.utils.set_random_seed(0)
    compiled = kc.distillation.Distiller(teacher, student, all_losses())
    sgd = keras.optimizers.SGD
    a = fit(eager, run_eagerly=True, optimizer=sgd(0.001))
    b = fit(compiled, optimizer=sgd(0.001), **options)
    assert a.keys() == b.keys()
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
    for v, w in zip(values(twin.weights), values(student.weights), strict=True):
        np.testing.assert_allclose(v, w, atol=1e-4)


def test_mixed_precision_student_of_a_float32_teacher():
    teacher = net(6)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = net(2)
    finally:
        keras.config.set_dtype_policy("float32")
    distiller = kc.distillation.Distiller(teacher, student, all_losses()[:3])
    history = fit(distiller, epochs=4)
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_probabilities_and_logits_train_alike(side):
    teacher, student = net(6), net(2)
    softened = net(6 if side == "teacher" else 2, tail=[keras.layers.Softmax()])
    softened.set_weights((teacher if side == "teacher" else student).get_weights())
    given = {"teacher": teacher, "student": copy(student), side: softened}
    sgd = keras.optimizers.SGD
    fit(kc.distillation.Distiller(teacher, student, alpha=1.0), optimizer=sgd(0.01))
    fit(kc.distillation.Distiller(**given, alpha=1.0), optimizer=sgd(0.01))
    for a, b in zip(student.get_weights(), given["student"].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_keras_file(tmp_path):
    distiller = kc.distillation.Distiller(
        net(6), net(2), all_losses(), distillation_loss_weights=[1, 0.1, 2, 0], alpha=0.7
    )
    fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert type(loaded) is kc.distillation.Distiller and loaded.alpha == 0.7
    assert not loaded.teacher.trainable
    a, b = (m.evaluate(X, Y, verbose=0, return_dict=True) for m in (distiller, loaded))
    assert a == pytest.approx(b, rel=1e-5) and "accuracy" in a
    adapters = [values(model.adapters[0].weights) for model in (distiller, loaded)]
    for v, w in zip(*adapters, strict=True):
        np.testing.assert_array_equal(v, w)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), distiller.predict(X, verbose=0))
    # The optimizer's state is in the file too: training goes on alike (Keras does not save the
    # state of dropout).
    for model in (distiller, loaded):
        model.student.get_layer(index=-2).rate = 0.0
        model.train_function = None
        keras.utils.set_random_seed(5)
        model.fit(X, Y, batch_size=16, verbose=0)
    for v, w in zip(values(distiller.student.weights), values(loaded.student.weights), strict=True):
        np.testing.assert_allclose(v, w, atol=1e-5)
    distiller.student.save(tmp_path / "student.keras")
    plain = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(plain.predict(X, verbose=0), distiller.predict(X, verbose=0))


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_losses_run_in_keras_distiller():
    losses = [
        kc.distillation.LogitsDistillation(4.0),
        kc.distillation.AttentionTransfer("conv2", "conv2"),
        kc.distillation.Hint("logits", "logits"),
    ]
    teacher, student = net(6), net(2)
    theirs = keras.distillation.Distiller(teacher, student, losses, student_loss_weight=0.3)
    ours = kc.distillation.Distiller(teacher, student, losses, student_loss_weight=0.3)
    for distiller in (theirs, ours):
        distiller.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    # Theirs runs the student's features in training mode, so compare without dropout.
    student.get_layer(index=-2).rate = 0.0
    a, b = (float(d.compute_loss(X, Y, training=True)) for d in (theirs, ours))
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_pruning_during_distillation_prunes_the_student_only():
    teacher, student = net(6), net(4)
    before = values(teacher.variables)
    distiller = kc.distillation.Distiller(teacher, student, all_losses())
    schedule = kc.pruning.PolynomialDecay(0.2, 0.75, begin_step=0, end_step=4, frequency=1)
    pruning = kc.callbacks.MagnitudePruning(schedule, layers=["conv*", "logits"])
    history = fit(distiller, epochs=3, callbacks=[pruning])
    assert history["sparsity"][-1] == pytest.approx(0.75, abs=0.01)
    for layer in student.layers:
        if hasattr(layer, "kernel"):
            assert np.mean(values([layer.kernel])[0] == 0) == pytest.approx(0.75, abs=0.03)
    for a, b in zip(before, values(teacher.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    plain = kc.pruning.strip(distiller.student)
    np.testing.assert_array_equal(plain.predict(X, verbose=0), student.predict(X, verbose=0))


def test_filter_pruning_during_distillation_spares_the_students_outputs():
    student = net(4)
    distiller = kc.distillation.Distiller(net(6), student)
    pruning = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5), granularity="filter")
    fit(distiller, callbacks=[pruning])
    assert set(pruning.layer_sparsity) == {"conv1/kernel", "conv2/kernel"}


def test_students_of_compressed_layers():
    student = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            kc.layers.BinaryDense(16, name="binary"),
            keras.layers.BatchNormalization(),
            kc.layers.FactorizedDense(12, rank=3, activation="relu", name="factorized"),
            kc.layers.TTDense(12, rank=2, name="tt"),
            keras.layers.Dense(4),
        ]
    )
    before = values(student.trainable_variables)
    fit(kc.distillation.Distiller(net(6), student, temperature=4.0, alpha=0.9), epochs=3)
    for a, b in zip(before, values(student.trainable_variables), strict=True):
        assert (a != b).any()


def test_pruning_and_quantization_aware_training_of_a_student_in_one_fit():
    student = kc.quantizers.quantize_aware(net(4), data=X)
    distiller = kc.distillation.Distiller(
        net(6),
        student,
        [kc.distillation.LogitsDistillation(4.0), kc.distillation.Hint("bn", "conv1")],
    )
    pruning = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5), layers=["conv2"])
    fit(distiller, epochs=2, callbacks=[pruning])
    student = kc.pruning.strip(distiller.finalize())
    assert np.mean(values([student.get_layer("conv2").kernel])[0] == 0) == pytest.approx(0.5)
    if keras.backend.backend() == "tensorflow":
        lite = kc.export.to_tflite(student)
        want = student.predict(X, verbose=0)
        assert np.abs(lite.predict(X) - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_several_inputs_and_outputs():
    def build(width):
        inputs = {"b": keras.Input((3,)), "a": keras.Input((2,))}
        x = keras.layers.Dense(width, name="h")(keras.ops.concatenate(list(inputs.values()), 1))
        return keras.Model(
            inputs, {"u": keras.layers.Dense(4, name="u")(x), "v": keras.layers.Dense(3)(x)}
        )

    x = {"a": X[:, :2, 0, 0], "b": X[:, :3, 1, 0]}
    y = {"u": Y, "v": Y % 3}
    losses = [kc.distillation.LogitsDistillation(), kc.distillation.Hint("h", "h")]
    distiller = kc.distillation.Distiller(build(6), build(2), losses)
    distiller.compile("sgd", {"u": CROSSENTROPY, "v": CROSSENTROPY}, loss_weights={"u": 1, "v": 2})
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"]).all()
    assert distiller.predict(x, verbose=0)["v"].shape == (32, 3)


def test_features_between_models_with_different_classes():
    hint = kc.distillation.Hint("conv1", "conv1")
    distiller = kc.distillation.Distiller(net(6, classes=9), net(2), hint)
    assert np.isfinite(fit(distiller)["loss"]).all()


def subclassed(built):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="sub")
            self.dense = keras.layers.Dense(4)

        def call(self, inputs):
            return self.dense(keras.ops.reshape(inputs, (-1, 64)))

    model = Model()
    if built:
        model(X)
    return model


def test_subclassed_models():
    distiller = kc.distillation.Distiller(subclassed(True), subclassed(True), temperature=2.0)
    assert fit(distiller)["loss"][-1] > 0


def shared_net(model):
    return keras.Sequential([keras.Input((8, 8, 1)), *model.layers])


TEACHER = net(6, name="teacher")
LOGITS = kc.distillation.LogitsDistillation
BAD = {
    "classes": (lambda: {"student": net(2, classes=5)}, "'teacher' gives 4, .* 'net' 5"),
    "no_layer": (
        lambda: {"distillation_losses": kc.distillation.Hint("cnv1", "conv1")},
        "teacher_layer_name='cnv1'.*'conv1'",
    ),
    "no_layer_keras": (
        lambda: {"distillation_losses": keras.distillation.FeatureDistillation("mse", "bn", "b")},
        "student_layer_name='b'.*The model has: .*bn",
    ),
    "shapes": (
        lambda: {"distillation_losses": kc.distillation.Hint("conv1", "conv2")},
        r"no regressor .*'conv2', shape \(None, 4, 4, 4\).*'conv1', shape \(None, 6, 6, 6\)",
    ),
    "temperature": (lambda: {"temperature": 0}, r"`temperature` .*\(0, inf\).*temperature=0"),
    "alpha": (lambda: {"alpha": 1.5}, r"`alpha` .*\[0, 1\].*alpha=1.5"),
    "alpha_below": (lambda: {"alpha": -0.1}, r"`alpha` .*\[0, 1\]"),
    "both": (lambda: {"alpha": 0.5, "student_loss_weight": 0.5}, "give one of the two"),
    "empty": (lambda: {"distillation_losses": []}, "at least one"),
    "no_loss": (lambda: {"distillation_losses": ["kl_divergence"]}, "kl_divergence"),
    "where": (lambda: {"distillation_losses": LOGITS(), "temperature": 2.0}, "temperature=2.0"),
    "weights": (lambda: {"distillation_loss_weights": [1.0, 2.0]}, r"each of the 1 .*\[1.0, 2.0\]"),
    "negative": (lambda: {"distillation_loss_weights": [-1.0]}, r"distillation_loss_weights\[0\]"),
    "unbuilt": (lambda: {"student": subclassed(False)}, "student 'sub' is not built"),
    "not_a_model": (lambda: {"teacher": "resnet"}, "`teacher` must be a keras.Model"),
    "same": (lambda: {"student": TEACHER}, "shares weights"),
    "shared": (lambda: {"student": shared_net(TEACHER)}, "shares weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, message = BAD[case]
    before = TEACHER.trainable
    with pytest.raises(ValueError, match=message):
        kc.distillation.Distiller(**{"teacher": TEACHER, "student": net(2), **make()})
    assert TEACHER.trainable is before


def test_labels_and_loss_are_needed_below_alpha_1():
    distiller = kc.distillation.Distiller(net(6), net(2))
    with pytest.raises(ValueError, match=r"needs `loss`.*alpha=0.5"):
        distiller.compile("adam")
    distiller.compile("adam", CROSSENTROPY)
    with pytest.raises(ValueError, match="labels are needed"):
        distiller.fit(X, verbose=0)


def test_loss_of_keras_that_compares_raw_logits_is_warned_about():
    theirs = keras.distillation.LogitsDistillation
    with pytest.warns(UserWarning, match="compares raw logits"):
        kc.distillation.Distiller(net(6), net(2), theirs(3.0))
    z = np.array([[1.0, 2.0, 4.0]], "float32")
    good = theirs(3.0, loss=keras.losses.KLDivergence())
    want = float(LOGITS(3.0).compute_loss(z, z[:, ::-1]))
    assert float(good.compute_loss(z, z[:, ::-1])) == pytest.approx(want, rel=1e-4)
    assert float(theirs(3.0).compute_loss(z, z[:, ::-1])) != pytest.approx(want, rel=0.1)


def test_keras_arguments_come_first_in_the_same_order():
    names = [
        list(inspect.signature(c.__init__).parameters)[:6]
        for c in (keras.distillation.Distiller, kc.distillation.Distiller)
    ]
    assert names[0] == names[1]
