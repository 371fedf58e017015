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
from scipy import stats

from keras_compress.layers import HashedDense
from keras_compress.sharing.hashing import (
    buckets_and_signs,
    expand_values,
    hash_seeds,
    signed_buckets,
)

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
from scipy import stats
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


def functional(inputs=24, units=12, **arguments):
    return built(inputs, units, **{"compression": 0.1, "num_hashes": 3, **arguments})


def recovered_by_the_definition(layer):
    """V[i, j] = f(xi_1 w[h_1(i, j)], ..., xi_U w[h_U(i, j)]), entry by entry."""
    shape = (layer.input_channels, layer.units)
    w, *network = (ops.convert_to_numpy(v).astype("float64") for v in layer.kernel_weights)
    hashes = [buckets_and_signs(shape, len(w), s) for s in hash_seeds(layer.seed, layer.num_hashes)]
    kernel = np.zeros(shape)
    for index in np.ndindex(*shape):
        z = np.array([w[h[index]] * xi[index] for h, xi in hashes])
        if layer.reconstruction is None:
            kernel[index] = z.sum() / math.sqrt(len(z))
            continue
        *hidden, last, bias = network
        for weights, offset in zip(hidden[::2], hidden[1::2], strict=True):
            z = np.tanh(z @ weights + offset)
        kernel[index] = (z @ last + bias)[0]
    return kernel


@pytest.mark.parametrize("seed", [0, 11])
def test_shi_one_hash_and_the_linear_identity_is_hasheddense(seed):
    plain, linear = built(seed=seed), built(seed=seed, num_hashes=1, reconstruction=())
    weights, bias = linear.network
    weights.assign([[1.0]])
    linear.values.assign(plain.values)
    x = np.random.default_rng(0).normal(size=(5, 24)).astype("float32")
    np.testing.assert_allclose(linear(x), plain(x), atol=1e-6)
    assert weights.shape == (1, 1) and bias.shape == (1,)


@pytest.mark.parametrize("reconstruction", [None, (), (8,), (5, 3)])
def test_shi_layer_equals_the_loop_over_entries(reconstruction):
    layer = functional(reconstruction=reconstruction, seed=4, use_bias=False)
    rng = np.random.default_rng(0)
    for weight in layer.network:
        weight.assign(rng.normal(size=weight.shape))
    expected = recovered_by_the_definition(layer)
    x = rng.normal(size=(5, 24)).astype("float32")
    np.testing.assert_allclose(layer.reconstruct_kernel(), expected, atol=1e-5)
    for training in (False, True):
        np.testing.assert_allclose(layer(x, training=training), x @ expected, atol=1e-4)


def test_shi_params_are_k_and_a_network_that_does_not_grow_with_the_layer():
    sizes = []
    for inputs, units in ((24, 12), (240, 120)):
        layer = functional(inputs, units, reconstruction=(8,), use_bias=False)
        k = math.ceil(round(0.1 * inputs * units, 6))
        assert layer.values.shape == (k,)
        sizes.append(layer.count_params() - k)
        assert layer.storage_bits() == 32 * layer.count_params()
    assert sizes == [3 * 8 + 8 + 8 + 1] * 2


@pytest.mark.parametrize("reconstruction", [None, (4,)])
def test_shi_gradient_is_the_bucket_sum_over_all_hashes(reconstruction):
    layer = HashedDense(
        12, compression=0.1, num_hashes=3, reconstruction=reconstruction, use_bias=False
    )
    model = keras.Sequential([keras.Input((24,)), layer])
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, n)).astype("float32") for n in (24, 12))
    w, *network = (ops.convert_to_numpy(v).astype("float64") for v in layer.kernel_weights)
    kernel = recovered_by_the_definition(layer)
    upstream = x.T @ (2 * (x @ kernel - y) / y.size)
    hashes = [buckets_and_signs((24, 12), len(w), s) for s in hash_seeds(0, 3)]
    z = np.stack([w[h] * xi for h, xi in hashes], axis=-1)
    if reconstruction is None:
        slopes = np.full(z.shape, 1 / math.sqrt(3))
    else:
        hidden = np.tanh(z @ network[0] + network[1])
        slopes = ((1 - hidden**2) * network[2][:, 0]) @ network[0].T
    expected = np.zeros(len(w))
    for u, (h, xi) in enumerate(hashes):
        np.add.at(expected, h, xi * slopes[..., u] * upstream)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.train_on_batch(x, y)
    np.testing.assert_allclose(w - ops.convert_to_numpy(layer.values), expected, atol=1e-5)


def test_shi_kernel_has_more_distinct_values_than_weights():
    k = built(compression=0.1).values.shape[0]
    plain = np.abs(built(compression=0.1).reconstruct_kernel())
    several = np.abs(functional(reconstruction=(8,)).reconstruct_kernel())
    assert len(np.unique(plain.round(6))) <= k < len(np.unique(several.round(6))) / 5


def test_hashes_of_one_layer_are_independent():
    seeds = hash_seeds(7, 4)
    assert seeds[0] == 7 and len(set(seeds)) == 4
    hashed = [signed_buckets((64, 64), 8, seed) for seed in seeds]
    for i in range(4):
        for j in range(i):
            table = np.bincount((16 * hashed[i] + hashed[j]).ravel(), minlength=256)
            assert stats.chisquare(table).pvalue > 1e-3


def test_fit_of_several_hashes_is_the_least_squares_optimum():
    dense = keras.layers.Dense(12)
    dense.build((None, 24))
    kernel = ops.convert_to_numpy(dense.kernel)
    layer = HashedDense.from_layer(dense, compression=0.25, num_hashes=3)
    design = np.zeros((kernel.size, 72))
    for seed in hash_seeds(0, 3):
        h, xi = buckets_and_signs((24, 12), 72, seed)
        np.add.at(design, (np.arange(kernel.size), h.ravel()), xi.ravel() / math.sqrt(3))
    expected = np.linalg.lstsq(design, kernel.ravel(), rcond=None)[0]
    np.testing.assert_allclose(layer.values, expected, atol=1e-5)


def test_fitted_network_is_no_worse_than_the_plain_sum():
    dense = keras.layers.Dense(40)
    dense.build((None, 60))
    kernel = ops.convert_to_numpy(dense.kernel)
    errors = [
        np.linalg.norm(
            HashedDense.from_layer(
                dense, num_hashes=3, reconstruction=reconstruction
            ).reconstruct_kernel()
            - kernel
        )
        for reconstruction in (None, (), (8,))
    ]
    assert errors[1] < 1.001 * errors[0] and errors[2] < 1.02 * errors[0]


@pytest.mark.parametrize("reconstruction", [None, (), (16,), (16, 8)])
def test_shi_initial_spread_is_that_of_the_virtual_kernel(reconstruction):
    keras.utils.set_random_seed(0)
    squares = [
        np.mean(functional(128, 64, reconstruction=reconstruction).reconstruct_kernel() ** 2)
        for _ in range(20)
    ]
    # The network is drawn too: the spread is right in the mean, and a little low behind two tanh.
    assert math.sqrt(np.mean(squares)) == pytest.approx(math.sqrt(2 / 192), rel=0.3)


@on_tensorflow
def test_shi_tflite_is_the_dense_layer():
    from keras_compress.export import to_tflite

    layer = HashedDense(64, num_hashes=2, reconstruction=(4,))
    model = keras.Sequential([keras.Input((32,)), layer])
    x = np.random.default_rng(0).normal(size=(2, 32)).astype("float32")
    lite = to_tflite(model, calibration=x)
    assert lite.ops == ["FULLY_CONNECTED"] and lite.max_error < 1e-5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_hashes": 0}, "`num_hashes` must be a positive integer"),
        ({"reconstruction": 8}, "`reconstruction` must be a sequence"),
        ({"reconstruction": (8, 0)}, r"`reconstruction\[1\]` must be a positive integer"),
    ],
)
def test_bad_functional_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"HashedDense: {message}"):
        HashedDense(12, **arguments)
