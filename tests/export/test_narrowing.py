"""Narrowing: integers of the converter that fewer bits hold, repacked without loss."""

import keras
import numpy as np
import pytest

from keras_compress.export import to_tflite
from keras_compress.export.narrowing import coarser_grid
from tests.export.stored_models import assert_clean, constants, run

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("level", range(1, 8))
def test_rounded_multiples_are_recognised(level):
    coarse = RNG.integers(-level, level + 1, size=(5, 40))
    coarse[:, 0] = level
    coarse[2] = 0
    factors = np.array([127 / level, 18.0, 1.0, 2.0, 126 / level])
    fine = np.round(coarse * factors[:, None]).astype(np.int8)
    found, scale = coarser_grid(fine)
    np.testing.assert_array_equal(np.round(found * scale[:, None]), fine)
    rows = [0, 4]
    np.testing.assert_allclose(found[rows] * scale[rows, None] / factors[rows, None], coarse[rows])
    assert np.abs(found).max() <= 7


def test_other_integers_are_left_alone():
    assert coarser_grid(RNG.integers(-127, 128, size=(4, 64)).astype(np.int8)) is None
    one_row = np.zeros((3, 64), np.int8)
    one_row[1] = RNG.integers(-127, 128, size=64)
    assert coarser_grid(one_row) is None


def test_one_scale_needs_one_factor():
    fine = np.array([[127, 0, -127], [63, 63, -63]], np.int8)
    assert coarser_grid(fine) is not None
    found, scale = coarser_grid(fine, one_scale=True) or (None, None)
    assert found is None or len(set(scale)) == 1


def ternary_model(levels, activation="relu"):
    model = keras.Sequential(
        [
            keras.Input((66,)),
            keras.layers.Dense(45, activation=activation, bias_initializer="normal"),
            keras.layers.Dense(30, bias_initializer="normal"),
        ]
    )
    first, second = model.layers
    ints = RNG.integers(-levels, levels + 1, size=first.kernel.shape)
    ints[0] = levels
    first.kernel.assign(ints * RNG.uniform(0.01, 0.1, 45))
    second.kernel.assign(RNG.normal(size=second.kernel.shape))
    return model, ints


@on_tensorflow
@pytest.mark.parametrize("quantize", ["int8", "dynamic"])
@pytest.mark.parametrize(
    "levels,optimize_for,stored", [(1, "size", 2), (1, "latency", 4), (7, "size", 4)]
)
def test_weights_are_exact_and_outputs_within_one_step(quantize, levels, optimize_for, stored):
    keras.utils.set_random_seed(0)
    model, ints = ternary_model(levels)
    x = RNG.normal(size=(64, 66)).astype("float32")
    options = {"quantize": quantize, "calibration": x}
    plain = to_tflite(model, **options, storage="dense")
    lite = to_tflite(model, **options, optimize_for=optimize_for)
    assert_clean(lite)
    ((found, scale),) = [c for c in constants(lite, f"INT{stored}") if c[0].ndim == 2]
    np.testing.assert_array_equal(found.T, ints)
    kernel = np.asarray(model.layers[0].kernel)
    np.testing.assert_allclose(found.T * scale, kernel, rtol=1e-5)
    assert plain.nbytes - lite.nbytes > (8 - stored) / 8 * ints.size - 400
    step = 0.02 * np.abs(np.asarray(model(x))).max()
    for row in x[:8, None]:
        for delegate in (True, False):
            old = run(plain, row, delegate=delegate)
            np.testing.assert_allclose(run(lite, row, delegate=delegate), old, atol=step)


@on_tensorflow
def test_other_weights_stay_int8():
    model, _ = ternary_model(40)
    x = RNG.normal(size=(64, 66)).astype("float32")
    lite = to_tflite(model, quantize="int8", calibration=x)
    assert lite.content == to_tflite(model, quantize="int8", calibration=x).content
    assert len([c for c in constants(lite, "INT8") if c[0].ndim == 2]) == 2
