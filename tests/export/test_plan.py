"""Plan: which kernel of a model is stored how."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.export import to_tflite
from keras_compress.export.plan import few_values, inference_form, without_zeros
from keras_compress.layers.stored_kernel import (
    BlockSparseKernel,
    CodebookKernel,
    GridKernel,
    SparseKernel,
)
from tests.export.stored_models import assert_clean, assert_runs_like

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


def masked(shape, density, block=(1, 1)):
    pattern = RNG.random((shape[0] // block[0], shape[1] // block[1])) < density
    return (RNG.normal(size=shape) * np.kron(pattern, np.ones(block))).astype("float32")


@pytest.mark.parametrize(
    "kernel,expected",
    [
        (RNG.normal(size=(128, 128)), None),
        (masked((128, 128), 0.8), None),
        (masked((128, 128), 0.5), SparseKernel),
        (masked((512, 512), 0.2, (32, 32)), BlockSparseKernel),
        (masked((512, 512), 0.12, (16, 16)), BlockSparseKernel),
        # Blocks too narrow for the computation to gain, or sides that they do not divide.
        (masked((512, 512), 0.4, (16, 16)), SparseKernel),
        (masked((512, 512), 0.2, (4, 4)), SparseKernel),
        (masked((520, 520), 0.2, (20, 20)), SparseKernel),
    ],
)
def test_zeros_are_left_out_where_that_pays(kernel, expected):
    stored = without_zeros(kernel.astype("float32"))
    assert type(stored) is (expected or type(None))
    if stored is not None:
        np.testing.assert_array_equal(stored.dense(), kernel.astype("float32"))


def test_sparse_convolutions_with_few_channels_stay_dense():
    # One segment of 4 bytes for each 3 entries.
    kernel = masked((27, 8192), 0.6)
    assert without_zeros(kernel.reshape(3, 3, 3, 8192)) is None
    assert without_zeros(kernel.reshape(3, 3, 256, 96)) is not None


def test_few_values_are_a_grid_or_a_codebook():
    codes = RNG.integers(0, 5, size=(64, 65))
    grid = few_values((codes * 0.1 - 0.2).astype("float32"))
    assert type(grid) is GridKernel and grid.bits == 4
    np.testing.assert_allclose(grid.dense(), codes * 0.1 - 0.2, atol=1e-6)
    values = RNG.normal(size=5).astype("float32")
    book = few_values(values[codes])
    assert type(book) is CodebookKernel
    np.testing.assert_array_equal(book.dense(), values[codes])
    assert few_values(RNG.normal(size=(64, 65))) is None
    late = np.zeros(8192, "float32")
    late[4096:] = RNG.normal(size=4096)
    assert few_values(late.reshape(64, 128)) is None


def stock_model(kernel):
    model = keras.Sequential([keras.Input(kernel.shape[:1]), keras.layers.Dense(kernel.shape[1])])
    model.layers[0].kernel.assign(kernel)
    return model


def forms(model, **options):
    _, stored = inference_form(model, **options)
    return [type(plan.kernel) for plan in stored]


def test_storage_says_which_stock_kernels_are_stored():
    ternary = stock_model(RNG.choice([-0.1, 0.1], size=(64, 64)))
    assert forms(ternary, storage="dense") == []
    assert forms(ternary, storage="auto") == []
    assert forms(ternary, storage="compact") == [GridKernel]
    pruned = stock_model(masked((64, 64), 0.2))
    assert forms(pruned, storage="auto") == forms(pruned, storage="compact") == [SparseKernel]
    assert forms(pruned, storage="dense") == []
    # int8 weights are smaller than half of the float ones with indices, and faster.
    assert forms(pruned, storage="auto", quantize="dynamic") == []
    _, (plan,) = inference_form(pruned, "auto", "float16")
    assert plan.kernel.kernel.dtype == np.float16


def test_small_lora_and_quantized_layers_are_left_alone():
    assert forms(stock_model(np.zeros((8, 8))), storage="compact") == []
    lora = stock_model(np.zeros((64, 64)))
    lora.layers[0].enable_lora(2)
    assert forms(lora, storage="compact") == []
    quantized = stock_model(RNG.normal(size=(64, 64)))
    quantized.quantize("int8")
    assert forms(quantized, storage="compact") == []


def test_the_model_and_its_compressed_layers_are_not_changed():
    model = keras.Sequential(
        [keras.Input((32,)), kc.layers.BinaryDense(64), kc.layers.HashedDense(16)]
    )
    methods = [vars(layer).get("multiply") for layer in model.layers]
    weights = model.get_weights()
    _, stored = inference_form(model, "auto")
    assert [plan.layer for plan in stored] == [layer.name for layer in model.layers]
    assert [vars(layer).get("multiply") for layer in model.layers] == methods == [None, None]
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@on_tensorflow
def test_block_pruned_layers_become_small_matmuls():
    keras.utils.set_random_seed(0)
    kernel = RNG.normal(size=(512, 512))
    model = stock_model(kernel * kc.pruning.magnitude_mask(kernel, 0.8, "block", (32, 32)))
    lite, dense = to_tflite(model), to_tflite(model, storage="dense")
    assert_clean(lite)
    assert "BATCH_MATMUL" in lite.ops
    assert lite.nbytes < 0.35 * dense.nbytes
    assert_runs_like(model, lite, RNG.normal(size=(1, 512)).astype("float32"), 1e-5)


@on_tensorflow
@pytest.mark.parametrize("config", [{"data_format": "channels_first"}, {"groups": 2}])
def test_what_litert_has_no_low_bit_kernel_for_stays_dense(config):
    first = config.get("data_format") == "channels_first"
    shape = (8, 5, 5) if first else (5, 5, 8)
    if first:
        layers = [kc.layers.BinaryConv2D(24, 3, input_quantizer=None, **config)]
    else:
        layers = [keras.layers.Conv2D(32, 3, **config)]
        layers[0].build((None, *shape))
        layers[0].kernel.assign(RNG.integers(-1, 2, size=layers[0].kernel.shape))
    model = keras.Sequential([keras.Input(shape), *layers])
    lite = to_tflite(model, storage="compact")
    assert lite.layers == []
    assert_clean(lite)
    x = RNG.normal(size=(2, *shape)).astype("float32")
    if first:
        x_last = keras.ops.transpose(x, (0, 2, 3, 1))
        kernel = model.layers[0].reconstruct_kernel()
        expected = np.transpose(keras.ops.conv(x_last, kernel), (0, 3, 1, 2))
        np.testing.assert_allclose(lite.predict(x), expected, atol=1e-4)
    else:
        np.testing.assert_allclose(lite.predict(x), model(x), atol=1e-4)
