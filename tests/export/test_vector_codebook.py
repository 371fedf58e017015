"""Codes of vectors in a .tflite: decoded once to the nearest int8, in the bytes of their bits."""

import keras
import numpy as np
import pytest

from keras_compress.export import to_tflite
from keras_compress.layers import CodebookConv2D, CodebookDense
from keras_compress.layers.stored_kernel import CodebookKernel, VectorCodebookKernel
from tests.export.stored_models import assert_clean, assert_runs_like, conv, dense, export, run

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)
DECODED = ["CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "FULLY_CONNECTED"]


def vectors(shape, length, k, stages=1, books=None):
    *lead, inputs, outputs = shape
    segments = inputs // length
    codes = RNG.integers(0, k, size=(stages, *lead, segments, outputs))
    # The highest code needs all of its bits.
    codes.flat[:k] = range(k)
    centres = RNG.normal(size=(stages, books or segments, k, length))
    return VectorCodebookKernel(codes, centres.astype("float32"))


# Bits in groups of 8, 4, 2 and 1; 61 outputs fill no whole byte.
@pytest.mark.parametrize(
    "k,stages", [(2, 1), (3, 3), (8, 1), (16, 3), (32, 1), (64, 2), (100, 1), (256, 1), (300, 1)]
)
def test_codes_of_any_number_of_bits_decode_to_the_nearest_int8(k, stages):
    kernel = vectors((60, 701), 4, k, stages)
    model, lite = export(dense(kernel), (60,))
    assert lite.ops == DECODED
    decoded, bias = kernel.dense(), np.asarray(model.layers[0].bias)
    found = run(lite, np.eye(60, dtype="float32")) - bias
    step = np.abs(decoded).max() / 96
    assert np.abs(found - decoded).max() <= 0.6 * stages * step
    assert_runs_like(model, lite, RNG.normal(size=(1, 60)).astype("float32"), 0.04)


def test_one_book_for_all_segments():
    kernel = vectors((60, 400), 4, 16, books=1)
    model, lite = export(dense(kernel), (60,))
    assert lite.ops == DECODED
    assert_runs_like(model, lite, RNG.normal(size=(1, 60)).astype("float32"), 0.03)


def test_single_weights_keep_their_bits_for_size_alone():
    kernel = CodebookKernel(RNG.integers(0, 32, size=(120, 300)), RNG.normal(size=32))
    model, small = export(dense(kernel), (120,), optimize_for="size")
    assert small.ops == DECODED and small.layers[0].nbytes < 0.7 * kernel.codes.size
    assert_runs_like(model, small, RNG.normal(size=(1, 120)).astype("float32"), 0.03)
    assert export(dense(kernel), (120,))[1].layers[0].form == "int8, nearest to the codebook"


def test_pointwise_convolutions_are_decoded_and_larger_ones_for_size():
    x = RNG.normal(size=(1, 7, 6, 24)).astype("float32")
    model, lite = export(conv(vectors((1, 1, 24, 900), 4, 16)), (7, 6, 24))
    assert lite.ops == DECODED
    assert_runs_like(model, lite, x, 0.03)
    large = conv(vectors((3, 3, 24, 200), 4, 16), padding="same", strides=2)
    model, small = export(large, (7, 6, 24), optimize_for="size")
    assert "READ_VARIABLE" in small.ops
    assert_runs_like(model, small, x, 0.03)
    model, fast = export(large, (7, 6, 24))
    assert fast.ops == ["CONV_2D"] and fast.layers[0].form == "int8, nearest to the codebook"
    assert_runs_like(model, fast, x, 0.03)


def test_a_layer_called_twice_is_decoded_once():
    layer = dense(vectors((96, 96), 4, 8))
    x = keras.Input((96,))
    model = keras.Model(x, layer(keras.ops.tanh(layer(x))))
    lite = to_tflite(model)
    assert_clean(lite)
    assert lite.ops.count("READ_VARIABLE") == 2 and lite.ops.count("CALL_ONCE") == 1
    assert_runs_like(model, lite, RNG.normal(size=(1, 96)).astype("float32"), 0.06)


@pytest.mark.parametrize(
    "optimize_for,options",
    [
        ("latency", {"bits": 2}),
        ("latency", {"bits": 4}),
        ("latency", {"bits": 8}),
        ("size", {"bits": 5}),
        ("latency", {"method": "pq", "segment": 4, "k": 16}),
        ("latency", {"method": "pq", "segment": 8, "k": 128}),
        ("latency", {"method": "rq", "k": 32, "stages": 3}),
        ("latency", {"method": "rq", "segment": 8, "k": 64}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_file_takes_no_more_than_the_stored_bits(optimize_for, options):
    model = keras.Sequential([keras.Input((512,)), CodebookDense(600, **options)])
    x = RNG.normal(size=(4, 512)).astype("float32")
    lite = to_tflite(model, calibration=x, optimize_for=optimize_for)
    assert lite.nbytes <= 1.15 * model.layers[0].storage_bits() / 8 + 8192
    assert lite.max_error < 0.03 * np.abs(model.predict(x, verbose=0)).max()


def test_file_of_a_convolution_takes_no_more_than_the_stored_bits():
    layer = CodebookConv2D(128, 3, method="pq", segment=4, k=16)
    model = keras.Sequential([keras.Input((6, 6, 64)), layer])
    lite = to_tflite(model, optimize_for="size")
    assert lite.nbytes <= 1.15 * layer.storage_bits() / 8 + 8192


@pytest.mark.parametrize("stages", [1, 2])
def test_tables_of_a_large_layer_run_as_builtin_operations(stages):
    method = "pq" if stages == 1 else "rq"
    layer = CodebookDense(200, method=method, segment=8, k=128, stages=stages, lookup=True)
    model = keras.Sequential([keras.Input((512,)), layer])
    lite = to_tflite(model)
    assert "GATHER" in lite.ops and "BATCH_MATMUL" in lite.ops
    x = RNG.normal(size=(1, 512)).astype("float32")
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-4)
