"""to_tflite: signatures, quantization, parity, errors; files whole or not at all."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.export import LiteModel, to_tflite

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 8, 8, 2)).astype("float32")


def cnn(classes=5):
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="fc"),
            keras.layers.Dense(classes),
        ]
    )


def two_inputs_two_outputs():
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    outputs = {
        "score": keras.layers.Dense(3)(joined),
        "aux": keras.layers.Dense(2)(left),
    }
    return keras.Model({"left": left, "right": right}, outputs)


@pytest.mark.parametrize(
    "quantize,error,smaller",
    [(None, 1e-5, 1.0), ("float16", 1e-2, 1.7), ("dynamic", 0.1, 2.5), ("int8", 0.1, 2.3)],
)
def test_quantize_keeps_the_outputs_and_shrinks_the_file(tmp_path, quantize, error, smaller):
    keras.utils.set_random_seed(0)
    model = cnn()
    plain = to_tflite(model)
    lite = to_tflite(model, tmp_path / "m.tflite", quantize=quantize, calibration=X)
    assert lite.max_error < error
    assert plain.nbytes / lite.nbytes >= smaller
    assert (tmp_path / "m.tflite").read_bytes() == lite.content
    np.testing.assert_array_equal(LiteModel.load(lite.path).predict(X), lite.predict(X))
    if quantize == "int8":
        assert {"QUANTIZE", "CONV_2D", "FULLY_CONNECTED", "DEQUANTIZE"} <= set(lite.ops)


def test_dict_inputs_and_outputs_keep_their_names():
    model = two_inputs_two_outputs()
    data = {"left": RNG.normal(size=(7, 6)), "right": RNG.normal(size=(7, 4))}
    lite = to_tflite(model, calibration=data)
    assert set(lite.input_names) == {"left", "right"}
    assert set(lite.output_names) == {"score", "aux"}
    assert lite.max_error < 1e-5
    expected = model({name: value.astype("float32") for name, value in data.items()})
    got = lite.predict(data)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


def test_list_outputs_are_named_after_their_layers():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, [keras.layers.Dense(2, name="b")(x), keras.layers.Dense(3, name="a")(x)])
    lite = to_tflite(model, calibration=RNG.normal(size=(5, 4)))
    assert set(lite.output_names) == {"a", "b"} and lite.max_error < 1e-5
    assert lite.predict(np.zeros((1, 4)))["a"].shape == (1, 3)


def test_calibration_takes_data_sets_and_batches():
    import tensorflow as tf

    model = cnn()
    labels = np.zeros(len(X))
    for data in (
        tf.data.Dataset.from_tensor_slices((X, labels)).batch(16),
        [(X[:20], labels[:20]), (X[20:], labels[20:])],
        [X],
    ):
        assert to_tflite(model, quantize="int8", calibration=data).max_error < 0.1


def test_batch_size_fixed_or_open():
    model = cnn()
    expected = model(X)
    np.testing.assert_allclose(to_tflite(model, batch_size=16).predict(X), expected, atol=1e-5)
    lite = to_tflite(model, batch_size=None)
    interpreter = lite.interpreter()
    detail = interpreter.get_input_details()[0]
    interpreter.resize_tensor_input(detail["index"], X.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], X)
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_compressed_layers_stay_small_in_the_file():
    model = keras.Sequential([keras.Input((512,)), keras.layers.Dense(512, name="fc")])
    small = kc.convert(model, {"fc": lambda fc: kc.layers.TTDense.from_layer(fc, rank=4)})
    bits = small.layers[0].storage_bits()
    assert to_tflite(small).nbytes < bits / 8 + 6000
    assert to_tflite(model).nbytes > 4 * 512 * 512


def test_the_model_is_not_changed():
    model = cnn()
    before = [w.copy() for w in model.get_weights()]
    to_tflite(model, quantize="int8", calibration=X)
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


def test_mixed_precision_models_export():
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    y = keras.layers.Dense(16, activation="relu", dtype="mixed_float16")(x)
    model = keras.Model(x, keras.layers.Dense(3, dtype="float32")(y))
    lite = to_tflite(model, calibration=RNG.normal(size=(10, 8)), quantize="float16")
    assert lite.max_error < 1e-2


@keras.saving.register_keras_serializable(package="tests")
class Digamma(keras.layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.math.digamma(x)


def test_an_operation_without_builtin_names_the_layer_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"what was there")
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, name="fine"), Digamma(name="special")]
    )
    with pytest.raises(ValueError, match=r"layer 'special'.*Digamma.*builtin") as caught:
        to_tflite(model, path)
    assert "fine" not in str(caught.value)
    assert path.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    import os

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        to_tflite(cnn(), tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options,message",
    [
        ({"quantize": "int4x"}, "must be one of.*Did you mean 'int4'"),
        ({"quantize": "int8"}, "needs `calibration`"),
        ({"quantize": "int8", "calibration": X[:0]}, "no samples"),
        ({"quantize": "int8", "calibration": []}, "empty"),
        ({"quantize": "int8", "calibration": X[..., :1]}, r"shape \(samples, 8, 8, 2\)"),
        ({"quantize": "int8", "calibration": X * np.nan}, "NaN"),
        ({"calibration": 3}, "iterable of batches"),
        ({"calibration": {"other": X}}, "no samples for the inputs"),
        ({"batch_size": 0}, "batch_size"),
        ({"path": "/no/such/folder/m.tflite"}, "no folder"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_tflite(cnn(), **options)


def test_models_that_cannot_be_exported_are_refused():
    with pytest.raises(ValueError, match=r"keras\.Model"):
        to_tflite(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="not built"):
        to_tflite(keras.Sequential([keras.layers.Dense(3)]))

    class Own(keras.Model):
        def call(self, x):
            return x

    model = Own()
    model(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="Wrap it"):
        to_tflite(model)


def test_predict_refuses_what_does_not_fit():
    lite = to_tflite(cnn())
    with pytest.raises(ValueError, match=r"shape \(8, 8, 2\)"):
        lite.predict(np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="takes 1 inputs"):
        lite.predict([X, X])
    with pytest.raises(ValueError, match="no samples"):
        lite.predict(X[:0])


def test_benchmark_times_models_in_turn(tmp_path):
    lite = to_tflite(cnn(), tmp_path / "m.tflite")
    timing = lite.benchmark(tmp_path / "m.tflite", runs=5)
    assert len(timing.microseconds) == len(timing.speedups) == 2
    assert timing.speedups[0] == 1.0 and min(timing.microseconds) > 0
    assert 0 < lite.gzip_bytes < lite.nbytes
