"""Structures, custom objects, compile() and errors of `from_tf_keras`."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_compress.interop import from_tf_keras
from tests.interop import legacy

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6)).astype("float32")
IMAGES = RNG.normal(size=(2, 32, 32, 3)).astype("float32") * 20


def layer(kind, /, *args, **kwargs):
    return getattr(legacy.tf_keras().layers, kind)(*args, **kwargs)


def model_of(inputs, outputs, **kwargs):
    return legacy.fill(legacy.tf_keras().Model(inputs, outputs, **kwargs))


@legacy.needs_tf_keras
def test_shared_layer_stays_shared():
    first, second = layer("Input", (6,), name="first"), layer("Input", (6,), name="second")
    shared = layer("Dense", 6, name="shared")
    old = model_of([first, second], layer("Subtract")([shared(shared(first)), shared(second)]))
    new = from_tf_keras(old)
    legacy.assert_same_outputs(old, new, X, X[::-1].copy())
    assert len(new.weights) == 2
    assert [tensor._keras_history.operation.name for tensor in new.inputs] == ["first", "second"]


@legacy.needs_tf_keras
def test_nested_models_called_twice():
    tf_keras = legacy.tf_keras()
    inner = tf_keras.Sequential(
        [layer("Input", (6,)), layer("Dense", 6), layer("BatchNormalization")]
    )
    a, b = layer("Input", (6,)), layer("Input", (6,))
    outer = tf_keras.Model([a, b], [layer("Add")([inner(a), b]), inner(b)], name="two")
    inputs = layer("Input", (6,))
    x, y = outer([inputs, inner(inputs)])
    old = model_of(inputs, layer("Dense", 2)(layer("Concatenate")([x, y])))
    new = from_tf_keras(old)
    legacy.assert_same_outputs(old, new, X)
    assert len(new.weights) == len(old.weights)


@legacy.needs_tf_keras
def test_dicts_of_inputs_and_outputs():
    inputs = {"b": layer("Input", (6,), name="b"), "a": layer("Input", (6,), name="a")}
    outputs = {
        "sum": layer("Add")([inputs["a"], inputs["b"]]),
        "head": layer("Dense", 2)(inputs["b"]),
    }
    old = model_of(inputs, outputs)
    data = {"a": X, "b": 2 * X}
    want, got = old(data), from_tf_keras(old)(data)
    assert set(want) == set(got)
    for key in want:
        np.testing.assert_allclose(keras.ops.convert_to_numpy(got[key]), want[key], atol=1e-5)


@legacy.needs_tf_keras
def test_layers_and_operations_of_one_name():
    inputs = layer("Input", (6,))
    x = inputs
    for name in ("multiply", "add", "multiply_1"):
        x = layer("Activation", "tanh", name=name)((x * 2.0) + 1.0)
    old = model_of(inputs, x)
    new = from_tf_keras(old)
    legacy.assert_same_outputs(old, new, X)
    assert new.get_layer("multiply").activation is keras.activations.tanh


@legacy.needs_tf_keras
def test_sequential_built_by_its_data_and_subclass_of_model():
    tf_keras = legacy.tf_keras()
    old = tf_keras.Sequential([layer("Dense", 3, activation="relu"), layer("Dense", 2)])
    old(X)
    new = from_tf_keras(legacy.fill(old))
    assert isinstance(new, keras.Sequential)
    legacy.assert_same_outputs(old, new, X)

    class Trained(tf_keras.Model):
        def train_step(self, data):
            raise NotImplementedError

    inputs = layer("Input", (6,))
    old = legacy.fill(Trained(inputs, layer("Dense", 3)(inputs)))
    with pytest.warns(UserWarning, match="Trained.*train_step"):
        legacy.assert_same_outputs(old, from_tf_keras(old), X)


@legacy.needs_tf_keras
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "MobileNetV3Small"])
def test_applications(name):
    kwargs = {"alpha": 0.35} if name == "MobileNetV2" else {}
    old = getattr(legacy.tf_keras().applications, name)(
        input_shape=(32, 32, 3), weights=None, classes=5, **kwargs
    )
    new = from_tf_keras(old)
    legacy.assert_same_outputs(old, new, IMAGES)
    assert new.count_params() == old.count_params()


@legacy.needs_tf_keras
def test_the_new_model_saves_loads_and_leaves_the_old_alone(tmp_path):
    inputs = layer("Input", (6,))
    x = layer("Dense", 4, activation="hard_sigmoid")(inputs)
    old = model_of(inputs, (x * np.array([1.0, 2.0, 3.0, 4.0], "float32"))[:, 1:])
    before = json.dumps(old.get_config(), default=str), [w.numpy() for w in old.weights]
    new = from_tf_keras(old)
    new.save(tmp_path / "new.keras")
    legacy.assert_same_outputs(old, keras.models.load_model(tmp_path / "new.keras"), X)
    assert before[0] == json.dumps(old.get_config(), default=str)
    for value, weight in zip(before[1], old.weights, strict=True):
        np.testing.assert_array_equal(value, weight.numpy())


@legacy.needs_tf_keras
def test_trainable_and_mixed_precision():
    inputs = layer("Input", (6,))
    x = layer("Dense", 4, trainable=False, dtype="mixed_float16")(inputs)
    old = model_of(inputs, layer("Dense", 2, dtype="float32")(x))
    new = from_tf_keras(old)
    assert [part.trainable for part in new.layers[1:]] == [False, True]
    assert new.layers[1].dtype_policy.name == "mixed_float16"
    legacy.assert_same_outputs(old, new, X, tolerance=1e-2)
    old.trainable = False
    assert not from_tf_keras(old).trainable_weights


@legacy.needs_tf_keras
@pytest.mark.parametrize("suffix", [".h5", ".keras", ""])
def test_saved_model_by_its_path(suffix, tmp_path):
    inputs = layer("Input", (6,))
    old = model_of(inputs, layer("Dense", 4)(inputs) + 1.0)
    old.save(tmp_path / f"model{suffix}")
    legacy.assert_same_outputs(old, from_tf_keras(tmp_path / f"model{suffix}"), X)


@legacy.needs_tf_keras
def test_compiled_like_the_old_one():
    tf_keras = legacy.tf_keras()
    inputs = layer("Input", (6,))
    heads = [layer("Dense", 2, name="a")(inputs), layer("Dense", 1, name="b")(inputs)]
    old = model_of(inputs, heads)
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 100, 0.9)
    old.compile(
        tf_keras.optimizers.SGD(schedule, momentum=0.8, nesterov=True, clipnorm=2.0),
        {"a": tf_keras.losses.Huber(delta=0.5), "b": "mae"},
        metrics={"a": [tf_keras.metrics.MeanSquaredError(name="error")], "b": "mse"},
        loss_weights={"a": 1.0, "b": 0.25},
    )
    targets = {"a": X[:, :2], "b": X[:, :1]}
    new = from_tf_keras(old)
    want = old.evaluate(X, targets, verbose=0, return_dict=True)
    got = new.evaluate(X, targets, verbose=0, return_dict=True)
    assert got == pytest.approx(want, rel=1e-5)
    assert (new.optimizer.momentum, new.optimizer.nesterov) == (0.8, True)
    assert new.optimizer.clipnorm == 2.0
    assert float(new.optimizer._learning_rate(50)) == pytest.approx(float(schedule(50)))
    old.fit(X, targets, epochs=2, verbose=0, shuffle=False)
    new.fit(X, targets, epochs=2, verbose=0, shuffle=False)
    legacy.assert_same_outputs(old, new, X, tolerance=1e-4)


@legacy.needs_tf_keras
def test_loss_of_ones_own_needs_custom_objects():
    def halved(y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1) / 2

    inputs = layer("Input", (6,))
    old = model_of(inputs, layer("Dense", 6)(inputs))
    old.compile("sgd", halved)
    with pytest.warns(UserWarning, match="halved.*custom_objects"):
        assert not from_tf_keras(old).compiled
    new = from_tf_keras(old, custom_objects={"halved": halved})
    want = float(np.mean(np.square(X - np.asarray(old(X)))) / 2)
    assert new.evaluate(X, X, verbose=0) == pytest.approx(want, rel=1e-5)


@legacy.needs_tf_keras
def test_custom_objects():
    tf_keras = legacy.tf_keras()

    class Scale(tf_keras.layers.Layer):
        def build(self, shape):
            self.offset = self.add_weight(name="offset", shape=shape[-1:])
            self.scale = self.add_weight(name="scale", shape=shape[-1:])

        def call(self, x):
            return self.scale * x + self.offset

    class NewScale(keras.layers.Layer):
        def build(self, shape):
            # In another order: names tell them apart.
            self.scale = self.add_weight(name="scale", shape=shape[-1:])
            self.offset = self.add_weight(name="offset", shape=shape[-1:])

        def call(self, x):
            return self.scale * x + self.offset

    class Own(tf_keras.constraints.Constraint):
        def __call__(self, w):
            return w

    class NewOwn(keras.constraints.Constraint):
        pass

    def wave(x):
        import tensorflow as tf

        return tf.sin(x)

    inputs = layer("Input", (6,))
    x = Scale(name="scale")(inputs)
    old = model_of(
        inputs, layer("Dense", 3, activation=wave, kernel_constraint=Own(), name="fc")(x)
    )
    objects = {"Scale": NewScale, "Own": NewOwn, "wave": keras.ops.sin}
    new = from_tf_keras(old, custom_objects=objects)
    legacy.assert_same_outputs(old, new, X)
    assert isinstance(new.get_layer("fc").kernel_constraint, NewOwn)
    for missing, name in {"Scale": "scale", "Own": "fc", "wave": "fc"}.items():
        kept = {name: value for name, value in objects.items() if name != missing}
        with pytest.raises(
            ValueError, match=f"'{name}'.*custom_objects=.*'{missing}': [^}}]+}}[^}}]*$"
        ):
            from_tf_keras(old, custom_objects=kept)

    class Short(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=shape[-1:])

        def call(self, x):
            return x

    with pytest.raises(ValueError, match="'scale' has weights of the shapes"):
        from_tf_keras(old, custom_objects={**objects, "Scale": Short})


@legacy.needs_tf_keras
def test_subclassed_model_with_a_class_for_it():
    def define(library):
        class Net(library.Model):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.first = library.layers.Dense(5, activation="relu")
                self.second = library.layers.Dense(2)

            def call(self, x):
                return self.second(self.first(x))

            def get_config(self):
                return {}

            @classmethod
            def from_config(cls, config):
                return cls()

        return Net

    old = define(legacy.tf_keras())()
    old(X)
    legacy.fill(old)
    with pytest.raises(ValueError, match="subclassed.*custom_objects=.*'Net'"):
        from_tf_keras(old)
    legacy.assert_same_outputs(old, from_tf_keras(old, {"Net": define(keras)}), X)


@legacy.needs_tf_keras
def test_what_has_no_equivalent_is_named():
    tf_keras = legacy.tf_keras()
    import tensorflow as tf

    inputs = layer("Input", (6, 2))
    old = tf_keras.Model(inputs, layer("LocallyConnected1D", 2, 3, name="local")(inputs))
    with pytest.raises(ValueError, match=r"'local' \(LocallyConnected1D\) has no counterpart"):
        from_tf_keras(old)
    old = tf_keras.Model(inputs, tf.math.lgamma(inputs))
    with pytest.raises(ValueError, match=r"'tf.math.lgamma.*`tf.math.lgamma` has no translation"):
        from_tf_keras(old)
    old = tf_keras.Model(inputs, inputs * tf.cast(tf.shape(inputs)[0] + 1, tf.float32))
    with pytest.raises(ValueError, match="size that is open"):
        from_tf_keras(old)
    old = tf_keras.Sequential([layer("Dense", 2)], name="bare")
    with pytest.raises(ValueError, match="'bare' is not built"):
        from_tf_keras(old)
    ragged = layer("Input", (None,), ragged=True, name="rag")
    with pytest.raises(ValueError, match="'rag' is ragged"):
        from_tf_keras(tf_keras.Model(ragged, layer("Embedding", 4, 2)(ragged)))


@legacy.needs_tf_keras
def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.h5"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match="tf_keras could not load '.*broken.h5'"):
        from_tf_keras(path)


def test_other_things_are_refused(tmp_path):
    with pytest.raises(ValueError, match="of tf_keras.*Keras 3 already"):
        from_tf_keras(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="of tf_keras.*NoneType"):
        from_tf_keras(None)
    with pytest.raises(ValueError, match="no file or folder"):
        from_tf_keras(tmp_path / "absent.h5")


def test_a_path_without_tf_keras_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "model.h5"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(ImportError, match=r'pip install "keras_compress\[tfmot\]"'):
        from_tf_keras(path)


def test_importing_keras_compress_imports_no_tf_keras():
    code = "import keras_compress, sys; print(bool({'tf_keras'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@legacy.needs_tf_keras
@legacy.needs_tfmot
def test_reading_a_file_leaves_tf_keras_and_the_environment_as_they_were(tmp_path):
    path = str(tmp_path / "model.h5")
    legacy.tf_keras().Sequential([layer("Input", (6,)), layer("Dense", 2)]).save(path)
    code = (
        "import os, sys; from keras_compress.interop import from_tf_keras;"
        "from_tf_keras(sys.argv[1]); import tensorflow as tf;"
        "print(tf.keras.__version__[0], os.environ.get('TF_USE_LEGACY_KERAS'))"
    )
    command = [sys.executable, "-c", code, path]
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["3", "None"]
