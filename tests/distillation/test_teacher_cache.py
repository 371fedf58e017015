"""Teacher outputs from disk: equal to those of the teacher, in any order, and never stale."""

import json

import keras
import numpy as np
import pytest

import keras_compress as kc

kd = kc.distillation
RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 6)).astype("float32")
Y = RNG.integers(0, 3, 20)
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# XLA compiles slowly on the TensorFlow backend, and JAX does not run a step without it.
JIT = keras.backend.backend() == "jax"


@keras.saving.register_keras_serializable("tests_cache")
class Count(keras.layers.Layer):
    """Identity that counts how often it runs."""

    runs = 0

    def call(self, inputs):
        self.runs += 1
        return inputs


def net(width=4, name="net"):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(width, activation="relu", name="mid"),
            Count(name="count"),
            keras.layers.Dense(3, name="logits"),
        ],
        name=name,
    )


def distil(teacher, student):
    losses = [kd.LogitsDistillation(4.0), kd.Hint("mid", "mid", adapter=None)]
    distiller = kd.Distiller(teacher, student, losses)
    distiller.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, jit_compile=JIT)
    return distiller


@pytest.fixture
def made(tmp_path):
    teacher = net(4, "teacher")
    return teacher, kd.cache_teacher(teacher, (X, Y), ["mid"], tmp_path / "c", batch_size=8)


def test_rows_are_the_teachers_outputs(made):
    teacher, cache = made
    rows = cache.rows([7, 3, 7])
    assert list(rows) == ["final_output", "mid"]
    want = teacher.predict(X, verbose=0)[[7, 3, 7]]
    np.testing.assert_allclose(rows["final_output"], want, atol=1e-6)
    kernel, bias = (keras.ops.convert_to_numpy(w) for w in teacher.get_layer("mid").weights)
    np.testing.assert_allclose(rows["mid"], np.maximum(X @ kernel + bias, 0)[[7, 3, 7]], atol=1e-5)


def test_training_from_the_cache_equals_training_with_the_teacher(made):
    teacher, cache = made
    students = [net(), net()]
    students[1].set_weights(students[0].get_weights())
    a, b = (distil(teacher, student) for student in students)
    a.fit(X, Y, batch_size=8, shuffle=False, epochs=2, verbose=0)
    runs = teacher.get_layer("count").runs
    data = cache.dataset(X, Y, batch_size=8, shuffle=False)
    b.fit(data, shuffle=False, epochs=2, verbose=0, validation_data=data)
    assert teacher.get_layer("count").runs == runs
    for v, w in zip(*(s.get_weights() for s in students), strict=True):
        np.testing.assert_allclose(v, w, atol=1e-5)


def test_outputs_travel_with_their_samples_when_shuffled(made):
    teacher, cache = made
    data = cache.dataset(X, Y, np.arange(20.0), batch_size=6, seed=0)
    outputs = teacher.predict(X, verbose=0)
    orders = []
    for _ in range(2):
        batches = [data[i] for i in range(len(data))]
        order = np.concatenate([weights for _, _, weights in batches]).astype(int)
        for x, y, weights in batches:
            rows = weights.astype(int)
            np.testing.assert_array_equal(x["student"], X[rows])
            np.testing.assert_array_equal(y, Y[rows])
            np.testing.assert_allclose(
                x["teacher_outputs"]["final_output"], outputs[rows], atol=1e-6
            )
        assert sorted(order) == list(range(20))
        orders.append(order.tolist())
        data.on_epoch_end()
    assert orders[0] != orders[1] != list(range(20))


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_own_datasets_bring_an_index(made, kind):
    teacher, cache = made
    order = RNG.permutation(20)
    inputs = {"index": order, "student": X[order]}
    if kind == "tf.data":
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices((inputs, Y[order])).batch(5)
    else:

        class Data(keras.utils.PyDataset):
            def __len__(self):
                return 4

            def __getitem__(self, i):
                rows = slice(5 * i, 5 * i + 5)
                return {key: value[rows] for key, value in inputs.items()}, Y[order][rows]

        data = Data()
    student = net()
    got = distil(teacher, student).evaluate(cache.attach(data), verbose=0, return_dict=True)
    want = distil(teacher, student).evaluate(X, Y, batch_size=5, verbose=0, return_dict=True)
    assert got == pytest.approx(want, rel=1e-5)


def test_a_cache_that_is_there_is_used_unless_something_changed(made):
    teacher, cache = made
    runs = teacher.get_layer("count").runs
    again = kd.cache_teacher(teacher, X, path=cache.path)
    assert teacher.get_layer("count").runs == runs
    np.testing.assert_array_equal(again.rows([1])["mid"], cache.rows([1])["mid"])
    with pytest.raises(ValueError, match="made of other samples or layers"):
        kd.cache_teacher(teacher, X[::-1], path=cache.path)
    with pytest.raises(ValueError, match="made of other samples or layers"):
        kd.cache_teacher(teacher, X, ["logits"], cache.path)


def test_a_stale_cache_is_refused(made):
    teacher, cache = made
    data = cache.dataset(X, Y)
    distiller = distil(teacher, net())
    layer = teacher.get_layer("logits")
    layer.kernel.assign(1.001 * layer.kernel)
    for attempt in (
        lambda: distiller.fit(data, verbose=0),
        lambda: distiller.fit(X, Y, validation_data=data, verbose=0),
        lambda: kd.cache_teacher(teacher, X, path=cache.path),
    ):
        with pytest.raises(ValueError, match="stale"):
            attempt()


def test_what_a_cache_cannot_serve_is_refused(made):
    teacher, cache = made
    with pytest.raises(ValueError, match="sample 4 is not the one"):
        x = X.copy()
        x[4, 2] += 1e-3
        cache.dataset(x, Y, shuffle=False)[0]
    with pytest.raises(ValueError, match="has 20 samples.*19"):
        cache.dataset(X, Y[:-1])
    for indices in ([20], [-1], [0.0], [[1]]):
        with pytest.raises(ValueError, match="integers from 0 to 19"):
            cache.rows(indices)
    hint = kd.Distiller(teacher, net(), kd.Hint("logits", "logits"), alpha=1.0)
    hint.compile("sgd")
    with pytest.raises(ValueError, match=r"lacks the teacher's layers \['logits'\]"):
        hint.fit(cache.dataset(X), verbose=0)
    with pytest.raises(ValueError, match="tf.data.Dataset"):
        cache.attach([X])
    teacher.trainable = True
    joint = kd.Distiller(teacher, net(), train_teacher=True)
    joint.compile("sgd", CROSSENTROPY)
    with pytest.raises(ValueError, match="a teacher that trains"):
        joint.fit(cache.dataset(X, Y), verbose=0)


def shuffled():
    class Data:
        def __iter__(self):
            yield X[RNG.permutation(20)]

    return Data()


@pytest.mark.parametrize(
    ("data", "layers", "message"),
    [
        (X[:, :5], None, "must have the shape"),
        (X, "mod", "mean 'mid'"),
        (shuffled(), None, "another order"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, data, layers, message):
    with pytest.raises(ValueError, match=message):
        kd.cache_teacher(net(), data, layers, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(made):
    _, cache = made
    meta = json.loads((cache.path / "meta.json").read_text())
    meta["outputs"]["mid"][1] = [20, 5]
    (cache.path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"damaged \(output_1.npy is float32 \(20, 4\)"):
        kd.TeacherCache(cache.path)
    np.save(cache.path / "samples.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="damaged"):
        kd.TeacherCache(cache.path)
    with pytest.raises(ValueError, match="no teacher cache"):
        kd.TeacherCache(cache.path / "nowhere")
