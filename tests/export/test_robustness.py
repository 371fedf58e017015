"""Refusals that name the layer; files whole or not at all, whoever else writes or kills."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.export import LiteModel, conversion, large, to_tflite
from keras_compress.files import write_atomically, write_folder_atomically

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

L = keras.layers


def small(units=8):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((16,)), L.Dense(64, activation="relu"), L.Dense(units)])


def operation(function, name="special"):
    """A layer of TensorFlow operations."""
    return L.Lambda(lambda x: function(_tf(), x), output_shape=lambda shape: shape, name=name)


@keras.saving.register_keras_serializable(package="tests.robustness")
class Digamma(L.Layer):
    def call(self, x):
        return REFUSED["Digamma"](_tf(), x)


def _tf():
    import tensorflow as tf

    return tf


REFUSED = {
    "Cholesky": lambda tf, x: tf.linalg.cholesky(x),
    "MatrixInverse": lambda tf, x: tf.linalg.inv(x),
    "Svd": lambda tf, x: tf.linalg.svd(x, compute_uv=False)[..., None] * x,
    "FFT2D": lambda tf, x: tf.math.real(tf.signal.fft2d(tf.cast(x, tf.complex64))),
    "IRFFT": lambda tf, x: tf.signal.irfft(tf.signal.rfft(x)),
    "AsString": lambda tf, x: tf.strings.to_number(tf.strings.as_string(x)),
    "Digamma": lambda tf, x: tf.math.digamma(x),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_converter_refuses_names_operation_and_layer(kind):
    layer = operation(REFUSED[kind])
    model = keras.Sequential([keras.Input((4, 4)), L.Dense(4, name="fine"), layer])
    with pytest.raises(ValueError, match=rf"layer 'special' of .*no builtin.*{kind}") as caught:
        to_tflite(model)
    assert "fine" not in str(caught.value)


def test_what_the_converter_takes_but_the_runtime_does_not_names_the_layer(tmp_path):
    # It makes the FFT of complex numbers one of real numbers.
    fft = operation(lambda tf, x: tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))))
    model = keras.Sequential([keras.Input((4, 4)), L.Dense(4, name="fine"), fft])
    with pytest.raises(ValueError, match="layer 'special' of .*does not load") as caught:
        to_tflite(model, tmp_path / "m.tflite")
    assert "fine" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_refusals_inside_nested_models_give_the_path():
    inner = keras.Sequential(
        [keras.Input((4,)), operation(REFUSED["Digamma"]), L.Dense(4)], name="inner"
    )
    x = keras.Input((4,))
    y = L.Dense(4, name="special")(x)
    with pytest.raises(ValueError, match="layer 'inner/special' of .*Digamma"):
        to_tflite(keras.Model(x, inner(y)))


def test_refusals_inside_loops_and_branches_name_the_layer():
    def loop(tf, x):
        return tf.while_loop(
            lambda i, v: i < 3, lambda i, v: (i + 1, tf.math.digamma(v)), [tf.constant(0), x]
        )[1]

    model = keras.Sequential([keras.Input((4,)), operation(loop, "looping"), L.Dense(4)])
    with pytest.raises(ValueError, match="layer 'looping' of .*Digamma"):
        to_tflite(model)


def test_several_refused_layers_are_all_named():
    model = keras.Sequential(
        [
            keras.Input((4, 4)),
            operation(REFUSED["Cholesky"], "first"),
            operation(REFUSED["Digamma"], "second"),
        ]
    )
    with pytest.raises(ValueError, match="layers 'first', 'second' of .*Cholesky, Digamma"):
        to_tflite(model)


def test_a_stored_kernel_beside_a_refused_layer_does_not_hide_it():
    stored = kc.layers.BinaryDense(64)
    model = keras.Sequential([keras.Input((64,)), stored, Digamma(name="special")])
    with pytest.raises(ValueError, match="layer 'special' of .*Digamma"):
        to_tflite(model)


def test_layers_are_left_as_they_were():
    model = small()
    layer = model.layers[0]
    own = layer.call
    to_tflite(model)
    assert "call" not in vars(layer)
    layer.call = marked = lambda x, training=None: own(x)
    to_tflite(model)
    assert vars(layer)["call"] is marked


def test_names_that_are_no_scopes_convert():
    x = keras.Input((8,))
    y = L.Dense(4, name="_hidden")(x)
    lite = to_tflite(keras.Model(x, L.Dense(4, name="sum-of.things")(y)))
    assert [line[0] for line in lite.table(runs=0).cells][:2] == ["layer_hidden", "sum-of.things"]


# Large kernels, which stay outside of the converter.


@pytest.fixture
def low_limit(monkeypatch):
    monkeypatch.setattr(large, "LARGE_BYTES", 4 * 16 * 64)


def assert_same(model, lite, x):
    np.testing.assert_allclose(lite.predict(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "softmax"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_large_kernels_export_as_they_are(low_limit, activation, use_bias):
    keras.utils.set_random_seed(0)
    fc = L.Dense(64, activation=activation, use_bias=use_bias, bias_initializer="normal")
    model = keras.Sequential([keras.Input((16,)), fc, L.Dense(8)])
    lite = to_tflite(model)
    assert_same(model, lite, np.random.default_rng(0).normal(size=(5, 16)).astype("float32"))
    assert lite.ops.count("FULLY_CONNECTED") == 2 and lite.layers == []
    assert lite.table(runs=0).cells[0][5] == "FULLY_CONNECTED float32"


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_large_kernels_of_layers_on_sequences(low_limit, batch_size):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 16)), L.Dense(64), L.Dense(8)])
    x = np.random.default_rng(0).normal(size=(4, 5, 16)).astype("float32")
    assert_same(model, to_tflite(model, batch_size=batch_size), x)


def test_large_kernels_of_a_layer_called_twice_are_stored_once(low_limit):
    keras.utils.set_random_seed(0)
    x = keras.Input((64,))
    fc = L.Dense(64)
    model = keras.Model(x, fc(keras.ops.tanh(fc(x))))
    lite = to_tflite(model)
    assert lite.nbytes < 1.5 * 4 * 64 * 64
    assert_same(model, lite, np.random.default_rng(0).normal(size=(3, 64)).astype("float32"))


def test_large_kernels_go_through_the_converter_where_it_changes_them(low_limit):
    model = small(64)
    lite = to_tflite(model, quantize="dynamic")
    assert lite.nbytes < to_tflite(model).nbytes
    assert to_tflite(model, storage="dense").ops == to_tflite(model).ops


# Files.


def run(script, *arguments):
    """Runs a script in a process of its own; returns its exit status."""
    code = f"import keras\n{textwrap.dedent(script)}"
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        timeout=300,
    )
    return process.returncode


MODEL = "keras.Sequential([keras.Input((16,)), keras.layers.Dense(64), keras.layers.Dense(8)])"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_no_file_and_spares_an_old_one(tmp_path, function):
    old = tmp_path / "old.tflite"
    old.write_bytes(b"what was there")
    script = f"""
        import os, signal, sys
        import keras_compress as kc
        os.{function} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        kc.export.to_tflite({MODEL}, sys.argv[1])
    """
    for path in (tmp_path / "new.tflite", old):
        assert run(script, path) == -signal.SIGKILL
    assert not (tmp_path / "new.tflite").exists()
    assert old.read_bytes() == b"what was there"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch, function):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        to_tflite(small(), tmp_path / "m.tflite")
    with pytest.raises(KeyboardInterrupt):
        write_folder_atomically(tmp_path / "folder", {"a": b"1"})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_converting_passes_through(tmp_path, monkeypatch):
    import tensorflow as tf

    class Interrupted:
        def __init__(self, *args):
            self.target_spec = tf.lite.TargetSpec()

        from_concrete_functions = classmethod(lambda cls, *args: cls())

        def convert(self):
            raise KeyboardInterrupt

    model = small()
    with monkeypatch.context() as patched:
        patched.setattr(tf.lite, "TFLiteConverter", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            to_tflite(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []
    assert_same(model, to_tflite(model), np.ones((2, 16), "float32"))


def test_an_error_while_tracing_lets_the_next_export_through(monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("broken layer")

    model = small()
    with monkeypatch.context() as patched:
        patched.setattr(L.Dense, "call", fail)
        with pytest.raises(ValueError, match="broken layer"):
            to_tflite(model)
    assert not conversion._TRACING.locked()
    assert_same(model, to_tflite(model), np.ones((2, 16), "float32"))


def test_threads_export_the_same_model_to_the_same_file(tmp_path):
    model, path = small(), tmp_path / "m.tflite"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        lites = list(pool.map(lambda _: to_tflite(model, path), range(4)))
    assert list(tmp_path.iterdir()) == [path]
    x = np.random.default_rng(0).normal(size=(5, 16)).astype("float32")
    for lite in (*lites, LiteModel.load(path)):
        assert_same(model, lite, x)
    assert "call" not in vars(model.layers[0])


def test_processes_export_to_the_same_file(tmp_path):
    path = tmp_path / "m.tflite"
    script = f"""
        import sys
        import keras_compress as kc
        for _ in range(3):
            kc.export.to_tflite({MODEL}, sys.argv[1])
    """
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: run(script, path), range(2))) == [0, 0]
    assert list(tmp_path.iterdir()) == [path]
    assert LiteModel.load(path).predict(np.ones((2, 16))).shape == (2, 8)


def test_threads_that_write_leave_the_permissions_alone(tmp_path):
    mask = os.umask(0o027)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: write_atomically(tmp_path / f"{i % 4}", b"x"), range(64)))
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    finally:
        assert os.umask(mask) == 0o027


def test_a_folder_in_the_way_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="must be a file; .* is a folder"):
        to_tflite(small(), tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")
def test_memory_of_an_export_stays_a_small_multiple_of_the_model():
    script = """
        import sys
        import keras_compress as kc

        def kilobytes(what):
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(what))

        def model(units):
            layers = [keras.layers.Dense(units, kernel_initializer="zeros") for _ in range(2)]
            for i, layer in enumerate(layers):
                layer.build((None, units))
                layer.kernel.assign(keras.random.normal((units, units), seed=i))
            return keras.Sequential([keras.Input((units,)), *layers])

        kc.export.to_tflite(model(8))
        large = model(3072)
        before = kilobytes("VmRSS")
        kc.export.to_tflite(large)
        # Not ru_maxrss: a child is born with that of the process that runs the tests.
        grown = 1024 * (kilobytes("VmHWM") - before)
        sys.exit(int(10 * grown / (2 * 4 * 3072 * 3072)))
    """
    # In tenths; through the converter it would be 59.
    assert 10 <= run(script) < 55
