"""HashedDense: what the protocol tests do not cover."""

import hashlib
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import HashedDense
from keras_compress.sharing.hashing import buckets_and_signs, expand_values

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)


def built(inputs=24, units=12, **arguments):
    layer = HashedDense(units, **arguments)
    layer.build((None, inputs))
    return layer


def kernel_by_the_definition(layer):
    """V, entry by entry."""
    shape = (layer.input_channels, layer.units)
    w = ops.convert_to_numpy(layer.values)
    h, xi = buckets_and_signs(shape, len(w), layer.seed)
    return np.array(
        [[w[h[i, j]] * xi[i, j] for j in range(shape[1])] for i in range(shape[0])], "float32"
    )


@pytest.mark.parametrize(
    "compression,count", [(1 / 8, 36), (1 / 7, 42), (0.07, 21), (1.0, 288), (1e-6, 1)]
)
def test_chen_trainable_count_is_k_and_the_bias(compression, count):
    layer = built(compression=compression)
    assert count == max(1, math.ceil(round(compression * 24 * 12, 9)))
    assert layer.values.shape == (count,)
    assert sum(math.prod(w.shape) for w in layer.trainable_weights) == count + 12
    assert layer.storage_bits() == 32 * (count + 12)
    assert not layer.non_trainable_weights


def test_products_that_floats_round_up_get_no_extra_bucket():
    assert 0.07 * 100 > 7
    assert built(10, 10, compression=0.07).values.shape == (7,)


@pytest.mark.parametrize("training", [False, True])
def test_chen_layer_equals_dense_of_v(training):
    layer = built(compression=0.2, seed=11)
    layer.bias.assign(np.arange(12.0))
    x = np.random.default_rng(0).normal(size=(5, 24)).astype("float32")
    expected = x @ kernel_by_the_definition(layer) + np.arange(12.0)
    actual = ops.convert_to_numpy(layer(x, training=training))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_chen_training_step_moves_each_weight_by_its_bucket_sum(jit_compile):
    layer = HashedDense(12, compression=0.1, seed=2)
    model = keras.Sequential([keras.Input((24,)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, n)).astype("float32") for n in (24, 12))
    before = ops.convert_to_numpy(layer.values).copy()
    kernel = kernel_by_the_definition(layer)
    model.train_on_batch(x, y)
    upstream = x.T @ (2 * (x @ kernel - y) / y.size)
    h, xi = buckets_and_signs((24, 12), len(before), 2)
    expected = np.zeros(len(before))
    np.add.at(expected, h, xi * upstream)
    moved = before - ops.convert_to_numpy(layer.values)
    np.testing.assert_allclose(moved, expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_training_step_in_mixed_precision_is_the_full_one_rounded(policy):
    moves = []
    for dtype in ("float32", policy):
        layer = HashedDense(12, compression=0.1, dtype=dtype)
        model = keras.Sequential([keras.Input((24,)), layer, keras.layers.Activation("linear")])
        layer.values.assign(np.linspace(-0.3, 0.3, layer.values.shape[0]))
        model.compile(keras.optimizers.SGD(1.0), "mse")
        before = ops.convert_to_numpy(layer.values).copy()
        rng = np.random.default_rng(0)
        model.train_on_batch(*(rng.normal(size=(8, n)).astype("float32") for n in (24, 12)))
        moves.append(before - ops.convert_to_numpy(layer.values))
    np.testing.assert_allclose(moves[1], moves[0], atol=0.03 * np.abs(moves[0]).max())


def test_from_layer_is_the_least_squares_optimum():
    dense = keras.layers.Dense(12)
    dense.build((None, 24))
    kernel = ops.convert_to_numpy(dense.kernel)
    layer = HashedDense.from_layer(dense, compression=0.25, seed=6)
    assert (layer.compression, layer.seed) == (0.25, 6)
    h, xi = buckets_and_signs((24, 12), 72, 6)
    design = np.zeros((kernel.size, 72))
    design[np.arange(kernel.size), h.ravel()] = xi.ravel()
    expected = np.linalg.lstsq(design, kernel.ravel(), rcond=None)[0]
    np.testing.assert_allclose(layer.values, expected, atol=1e-6)


def test_from_layer_recovers_a_hashed_layer():
    first = built(seed=8)
    again = HashedDense.from_layer(first.expand(), seed=8)
    np.testing.assert_allclose(again.reconstruct_kernel(), first.reconstruct_kernel(), atol=1e-6)


SCRIPT = """
import hashlib, numpy as np
from keras import ops
from keras_compress.layers import HashedDense
layer = HashedDense(48, compression=1 / 16, seed=123)
layer.build((None, 64))
layer.values.assign(np.arange(1.0, 193.0))
kernel = ops.convert_to_numpy(layer(np.eye(64, dtype="float32")))
print(hashlib.sha256(np.ascontiguousarray(kernel, "<f4").tobytes()).hexdigest())
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_chen_same_seed_gives_the_same_v_in_a_fresh_process_on_either_backend(backend):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    kernel = expand_values(np.arange(1.0, 193.0, dtype="<f4"), (64, 48), 123)
    assert run.stdout.split()[-1] == hashlib.sha256(kernel.tobytes()).hexdigest()


def test_chen_default_seed_is_fixed_and_other_seeds_differ():
    layers = [built(**arguments) for arguments in ({}, {"seed": 0}, {"seed": 1})]
    for layer in layers:
        layer.values.assign(np.arange(1.0, 37.0))
    first, same, other = (layer.reconstruct_kernel() for layer in layers)
    np.testing.assert_array_equal(first, same)
    assert np.mean(first == other) < 0.1


def test_layers_of_other_shape_and_as_many_buckets_hash_differently():
    wide, tall = built(32, 16), built(16, 32)
    assert wide.values.shape == tall.values.shape
    for layer in (wide, tall):
        layer.values.assign(np.arange(1.0, 65.0))
    wide, tall = wide.reconstruct_kernel(), tall.reconstruct_kernel()
    assert np.mean(wide[:16] == tall[:, :16]) < 0.1
    assert np.mean(wide == tall.T) < 0.1


@pytest.mark.parametrize(
    "initializer,stddev",
    [
        ("glorot_uniform", math.sqrt(2 / (256 + 128))),
        ("he_normal", math.sqrt(2 / 256)),
        (keras.initializers.RandomUniform(-0.3, 0.3), 0.3 / math.sqrt(3)),
    ],
)
def test_chen_initial_spread_is_that_of_the_virtual_kernel(initializer, stddev):
    keras.utils.set_random_seed(0)
    layer = built(256, 128, compression=1 / 8, kernel_initializer=initializer)
    kernel = layer.reconstruct_kernel()
    assert np.std(kernel) == pytest.approx(stddev, rel=0.05)
    assert abs(kernel.mean()) < 0.05 * stddev


def test_index_is_in_no_weight_and_not_in_the_keras_file(tmp_path):
    layer = HashedDense(512, compression=1 / 64)
    model = keras.Sequential([keras.Input((512,)), layer])
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((2, 512)), np.ones((2, 512)))
    assert [w.name for w in layer.weights] == ["values", "bias"]
    model.save(tmp_path / "model.keras")
    # 18 KiB of weights; an int32 index would be 1 MiB, packed to 13 bits still 416 KiB.
    assert (tmp_path / "model.keras").stat().st_size < 64 * 1024


@on_tensorflow
def test_index_is_not_in_a_saved_graph(tmp_path):
    import tensorflow as tf

    model = keras.Sequential([keras.Input((512,)), HashedDense(512, compression=1 / 64)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(2, 512)).astype("float32")
    model.train_on_batch(x, x)
    model.export(tmp_path / "saved", verbose=False)
    files = [file for file in (tmp_path / "saved").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 256 * 1024
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(saved.serve(x), model.predict(x, verbose=0), atol=1e-5)


@on_tensorflow
def test_only_the_training_step_is_compiled_by_xla():
    import tensorflow as tf

    layer = built()
    compiled = {}
    for training in (False, True):
        function = tf.function(lambda x, training=training: layer(x, training=training))
        graph = function.get_concrete_function(tf.TensorSpec((None, 24))).graph.as_graph_def()
        compiled[training] = any(f.attr["_XlaMustCompile"].b for f in graph.library.function)
    # A saved inference graph has to run where there is no XLA.
    assert compiled == {False: False, True: True}


@on_tensorflow
def test_tflite_stores_the_values_alone_and_hashes_once():
    from keras_compress.export import to_tflite

    model = keras.Sequential([keras.Input((512,)), HashedDense(256, compression=1 / 64)])
    x = np.random.default_rng(0).normal(size=(4, 512)).astype("float32")
    lite = to_tflite(model, calibration=x)
    assert lite.ops == ["CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "FULLY_CONNECTED"]
    # 2048 values of a byte, the hash of each row and column, and the graph.
    assert lite.nbytes < 2048 + 4 * (512 + 256) + 8192 < 4 * 512 * 256 / 30
    assert lite.max_error < 0.03


@on_tensorflow
def test_tflite_with_dense_storage_is_one_stock_layer():
    from keras_compress.export import to_tflite

    model = keras.Sequential([keras.Input((1024,)), HashedDense(1024, compression=1 / 64)])
    x = np.random.default_rng(0).normal(size=(2, 1024)).astype("float32")
    lite = to_tflite(model, storage="dense")
    assert lite.ops == ["FULLY_CONNECTED"]
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-4)
