"""ToeplitzLikeDense: what the protocol tests do not cover."""

import keras
import numpy as np
import pytest
import scipy.linalg
from keras import ops

from keras_compress.layers import ToeplitzLikeDense

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)


def built(units, inputs, **arguments):
    layer = ToeplitzLikeDense(units, **arguments)
    layer.build((None, inputs))
    return layer


def matrix_of(layer):
    """1/2 sum Z_1(g) Z_-1(J h), each a lower and an upper Toeplitz triangle."""
    total = 0
    for g, h in zip(ops.convert_to_numpy(layer.g).T, ops.convert_to_numpy(layer.h).T, strict=True):
        h = h[::-1]
        skew = scipy.linalg.toeplitz(h, np.concatenate([h[:1], -h[:0:-1]]))
        total = total + scipy.linalg.circulant(g) @ skew
    return total / 2


@pytest.mark.parametrize("units, inputs", [(9, 9), (5, 12), (12, 7)])
def test_sindhwani_layer_equals_dense_of_its_matrix(units, inputs):
    layer = built(units, inputs, rank=3, bias_initializer="ones")
    x = np.random.default_rng(0).normal(size=(4, inputs)).astype("float32")
    matrix = matrix_of(layer)[:units, :inputs]
    np.testing.assert_allclose(layer(x), x @ matrix.T + 1, atol=1e-4)


def test_sindhwani_params_are_two_generators():
    assert built(64, 64, rank=3, use_bias=False).count_params() == 2 * 64 * 3
    assert built(16, 64, rank=3).storage_bits() == 32 * (2 * 64 * 3 + 16)


def test_sindhwani_toeplitz_and_its_inverse_have_rank_two():
    column = 0.5 ** np.arange(24.0)
    toeplitz = scipy.linalg.toeplitz(column, 0.3 * column)
    for matrix in (toeplitz, np.linalg.inv(toeplitz)):
        dense = keras.layers.Dense(24, use_bias=False)
        dense.build((None, 24))
        dense.kernel.assign(matrix.T)
        layer = ToeplitzLikeDense.from_layer(dense, rank=2)
        np.testing.assert_allclose(layer.reconstruct_kernel(), matrix.T, atol=1e-5)


def test_more_generators_fit_better():
    dense = keras.layers.Dense(20)
    dense.build((None, 30))
    kernel = ops.convert_to_numpy(dense.kernel)
    errors = [
        np.linalg.norm(ToeplitzLikeDense.from_layer(dense, rank=r).reconstruct_kernel() - kernel)
        for r in (1, 4, 12, 30)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < np.linalg.norm(kernel) and errors[-1] < 1e-4


@pytest.mark.parametrize("units, inputs", [(256, 256), (64, 256)])
def test_spread_of_the_kernel_is_the_initializers(units, inputs):
    keras.utils.set_random_seed(1)
    spreads = [np.std(built(units, inputs, rank=4).reconstruct_kernel()) for _ in range(5)]
    assert np.mean(spreads) == pytest.approx((2 / (units + inputs)) ** 0.5, rel=0.15)


def test_half_precision_loses_no_more_than_its_rounding():
    full, half = (built(64, 64, dtype=dtype) for dtype in ("float32", "mixed_float16"))
    half.set_weights(full.get_weights())
    x = np.random.default_rng(0).normal(size=(4, 64)).astype("float32")
    outputs = ops.convert_to_numpy(half(x))
    assert outputs.dtype == "float16"
    np.testing.assert_allclose(outputs, full(x), atol=5e-3)


@on_tensorflow
@pytest.mark.parametrize("units, inputs, rank", [(512, 512, 2), (200, 500, 4)])
def test_tflite_stores_the_generators_alone(units, inputs, rank):
    from keras_compress.export import to_tflite

    layer = ToeplitzLikeDense(units, rank=rank, bias_initializer="ones")
    model = keras.Sequential([keras.Input((inputs,)), layer])
    x = np.random.default_rng(0).normal(size=(3, inputs)).astype("float32")
    lite = to_tflite(model, calibration=x)
    assert lite.nbytes < 1.15 * layer.storage_bits() / 8 + 8192 < units * inputs
    assert lite.max_error < 1e-4


@on_tensorflow
def test_tflite_of_a_small_kernel_is_the_dense_layer():
    from keras_compress.export import to_tflite

    model = keras.Sequential([keras.Input((16,)), ToeplitzLikeDense(16)])
    assert to_tflite(model).ops == ["FULLY_CONNECTED"]
    assert model.layers[0].macs() == 16 * 16


def test_macs_are_those_of_the_exported_form():
    # 64 x 16 numbers: windows of 16 at 2032 places of one and of three signals, a convolution of
    # 1024 outputs, and all products of 2032 places.
    expected = 2032 * 16 * 16 * (1 + 3) + 3 * 1024 * 1024 + 3 * 1024 * 2032
    layer = built(1024, 1010, rank=3)
    assert layer.macs((None, 7, 1010)) == 7 * expected


@pytest.mark.parametrize("rank", [0, -1, 2.0, "8", True])
def test_bad_ranks_are_refused_at_construction(rank):
    with pytest.raises(ValueError, match=r"ToeplitzLikeDense: `rank` must be"):
        ToeplitzLikeDense(12, rank=rank)


def test_too_large_a_rank_is_refused_at_build_and_by_from_layer():
    with pytest.raises(ValueError, match=r"size and units, 20, .* got rank=21"):
        built(12, 20, rank=21)
    dense = keras.layers.Dense(12)
    dense.build((None, 20))
    with pytest.raises(ValueError, match=r"ToeplitzLikeDense: .* got rank=21"):
        ToeplitzLikeDense.from_layer(dense, rank=21)
