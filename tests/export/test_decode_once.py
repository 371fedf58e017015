"""Weights decoded at load: the same integers as unpacked by numpy, once for shared layers."""

import keras
import numpy as np
import pytest

from keras_compress.export import to_tflite
from keras_compress.export.decode_once import symbols_per_byte
from keras_compress.export.flatbuffer import Flatbuffer
from keras_compress.layers.stored_kernel import CodebookKernel, GridKernel, HashedKernel
from tests.export.stored_models import assert_clean, assert_runs_like, conv, dense, export, run

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


def one_hot_rows(lite, count):
    """The kernel that a dense file holds, input by input: int8 holds 0 and 1 exactly."""
    return run(lite, np.eye(count, dtype="float32"))


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 16])
# 61 * 67 symbols fill no whole byte, whatever the alphabet.
@pytest.mark.parametrize("shape", [(64, 64), (61, 67)])
def test_codes_decode_to_the_nearest_int8_of_the_codebook(levels, shape):
    values = RNG.normal(size=levels)
    codes = RNG.integers(0, levels, size=shape)
    codes.flat[:levels] = range(levels)
    kernel = CodebookKernel(codes, values)
    # Small kernels are as well off with int8: the decoder itself takes 2.5 kB.
    big = CodebookKernel(np.tile(codes, (1, 4)), values)
    assert export(dense(kernel), shape[:1])[1].nbytes < 10_000
    model, lite = export(dense(big), shape[:1])
    packed = -(-big.codes.size // symbols_per_byte(levels))
    assert lite.layers[0].nbytes <= packed + 256 * 8
    assert lite.layers[0].form == f"{8 / symbols_per_byte(levels):.3g}-bit codes, decoded once"
    bias = np.asarray(model.layers[0].bias)
    found = one_hot_rows(lite, shape[0]) - bias
    assert np.abs(found - big.dense()).max() <= 0.6 * np.abs(values).max() / 96
    assert_runs_like(model, lite, RNG.normal(size=(1, shape[0])).astype("float32"), 0.03)


@pytest.mark.parametrize("low", [-1, 0])
def test_ternary_and_binary_take_fewer_bits_than_int2_for_size(low):
    ints = RNG.choice([low, 1] if low else [-1, 0, 1], size=(400, 131))
    kernel = GridKernel(ints, RNG.uniform(0.5, 1, 131))
    model, small = export(dense(kernel), (400,), optimize_for="size")
    _, fast = export(dense(kernel), (400,))
    assert fast.layers[0].form == "int2"
    assert small.layers[0].form == ("1-bit" if low else "1.6-bit") + " codes, decoded once"
    bias = np.asarray(model.layers[0].bias)
    np.testing.assert_allclose(one_hot_rows(small, 400) - bias, kernel.dense(), atol=2e-5)
    assert_runs_like(model, small, RNG.normal(size=(1, 400)).astype("float32"), 0.03)


def test_codes_of_convolutions_run_on_patches_for_size():
    kernel = CodebookKernel(RNG.integers(0, 4, size=(3, 3, 16, 64)), RNG.normal(size=4))
    model, lite = export(conv(kernel, padding="same"), (7, 6, 16), optimize_for="size")
    assert lite.layers[0].form == "2-bit codes, decoded once"
    assert_runs_like(model, lite, RNG.normal(size=(1, 7, 6, 16)).astype("float32"), 0.03)
    _, fast = export(conv(kernel, padding="same"), (7, 6, 16))
    assert fast.ops == ["CONV_2D"]


@pytest.mark.parametrize("buckets", [1, 7, 300])
def test_hashed_kernel_is_the_one_that_numpy_expands(buckets):
    kernel = HashedKernel(RNG.normal(size=buckets), 11, (33, 45))
    model, lite = export(dense(kernel, activation="relu"), (33,), batch_size=2)
    assert_runs_like(model, lite, RNG.normal(size=(2, 33)).astype("float32"), 0.03)


@pytest.mark.parametrize("hashed", [True, False])
def test_a_layer_called_twice_is_decoded_once(hashed):
    shape = (96, 96)
    if hashed:
        kernel = HashedKernel(RNG.normal(size=100), 1, shape)
    else:
        kernel = CodebookKernel(RNG.integers(0, 16, size=shape), RNG.normal(size=16))
    layer = dense(kernel)
    x = keras.Input(shape[:1])
    model = keras.Model(x, layer(keras.ops.tanh(layer(x))))
    lite = to_tflite(model)
    assert_clean(lite)
    flatbuffer = Flatbuffer(lite.content)
    names = [[flatbuffer.name_of(o) for o in graph.operators] for graph in flatbuffer.subgraphs]
    assert names[1].count("ASSIGN_VARIABLE") == 1
    assert names[0].count("READ_VARIABLE") == 2 and names[0].count("CALL_ONCE") == 1
    # tanh saturates: errors of the first call grow little in the second.
    assert_runs_like(model, lite, RNG.normal(size=(1, 96)).astype("float32"), 0.06)


def test_open_batch_and_sequences():
    kernel = CodebookKernel(RNG.integers(0, 16, size=(80, 96)), RNG.normal(size=16))
    model, lite = export(dense(kernel), (5, 80), batch_size=None)
    assert "READ_VARIABLE" in lite.ops
    assert_runs_like(model, lite, RNG.normal(size=(3, 5, 80)).astype("float32"), 0.03)
