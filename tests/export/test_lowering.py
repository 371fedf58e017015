"""Stored kernels on LiteRT: integers exact in the file, outputs those of the product."""

import keras
import numpy as np
import pytest

from keras_compress.export.lowering import nearest_grid
from keras_compress.layers.stored_kernel import CodebookKernel, GridKernel
from tests.export.stored_models import assert_runs_like, constants, conv, dense, export, run

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)
LIMIT = {2: 1, 4: 7, 8: 127}


def grid(bits, shape, per_channel=False):
    ints = RNG.integers(-LIMIT[bits], LIMIT[bits] + 1, size=shape)
    ints.flat[0] = LIMIT[bits]
    return GridKernel(ints, RNG.uniform(0.1, 1, shape[-1]) if per_channel else 0.25)


def inputs(*shape):
    return RNG.normal(size=shape).astype("float32")


def hybrid_bound(x, kernel):
    """Largest error of inputs rounded to 8 bits, in the product with a kernel."""
    step = 2 * np.abs(x).max(-1, keepdims=True) / 255
    return 0.6 * step * np.abs(kernel).sum(0) + 1e-5


# Rows of int4 and int2 that end within a byte; more rows than one; sizes around a vector's.
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("sizes", [(5, 1), (13, 3), (67, 8), (64, 16), (97, 33)])
def test_dense_integers_are_exact_in_the_file_and_multiply_right(bits, per_channel, sizes):
    kernel = grid(bits, sizes, per_channel)
    model, lite = export(dense(kernel), sizes[:1], batch_size=3)
    x = inputs(3, sizes[0])
    bound = hybrid_bound(x, kernel.dense())
    for delegate in (True, False):
        error = np.abs(run(lite, x, delegate=delegate) - np.asarray(model(x)))
        assert np.all(error <= bound)
    # Few inputs cost less as int4 with one scale than as int2 with one for each output.
    few = bits == 2 and not per_channel and sizes[0] < 48 and sizes[1] > 1
    stored = f"INT{4 if few else bits}"
    ((ints, scale),) = [c for c in constants(lite, stored) if c[0].ndim == 2]
    np.testing.assert_array_equal(ints.T, kernel.ints)
    np.testing.assert_array_equal(np.broadcast_to(kernel.scale, ints.T.shape), ints.T * 0 + scale)
    assert len(scale) == (sizes[1] if per_channel or stored == "INT2" else 1)


def test_equal_scales_of_all_outputs_are_stored_as_one():
    kernel = grid(4, (64, 32))
    same = GridKernel(kernel.ints, np.full(32, 0.25))
    for each in (kernel, same):
        ((_, scale),) = constants(export(dense(each), (64,))[1], "INT4")
        assert np.size(scale) == 1


@pytest.mark.parametrize("low,bits,stored", [(-2, 2, "INT2"), (-8, 4, "INT8"), (-128, 8, "INT8")])
def test_lowest_integers_are_right_with_and_without_delegate(low, bits, stored):
    ints = RNG.integers(low, -low, size=(65, 24))
    ints[0] = low
    kernel = GridKernel(ints, 0.1)
    model, lite = export(dense(kernel), (65,), batch_size=2)
    ((found, _),) = [c for c in constants(lite, stored) if c[0].ndim == 2]
    np.testing.assert_array_equal(found.T, ints)
    assert lite.layers[0].exact == (low == -128)
    assert_runs_like(model, lite, inputs(2, 65), 1e-5 if low == -128 else 0.02)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "tanh", "gelu", "softmax"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_bias_and_activation_are_kept_and_fused_where_litert_can(activation, use_bias):
    layer = dense(grid(2, (64, 20)), activation=activation, use_bias=use_bias)
    model, lite = export(layer, (64,), batch_size=4)
    assert_runs_like(model, lite, inputs(4, 64), 0.03)
    fused = activation in (None, "relu", "relu6")
    assert (lite.ops == ["FULLY_CONNECTED"]) == fused


def test_sequences_go_through_as_rows():
    model, lite = export(dense(grid(2, (64, 20), True), activation="relu"), (7, 64), batch_size=2)
    assert lite.ops == ["FULLY_CONNECTED"]
    assert_runs_like(model, lite, inputs(2, 7, 64), 0.02)


@pytest.mark.parametrize("shape", [(64,), (5, 64)])
def test_batch_may_stay_open(shape):
    layer = dense(grid(2, (64, 20)), activation="relu")
    model, lite = export(layer, shape, batch_size=None)
    assert_runs_like(model, lite, inputs(5, *shape), 0.02)
    x = inputs(70, *shape)
    np.testing.assert_allclose(lite.predict(x), model(x), atol=0.02 * np.abs(model(x)).max())


def test_time_and_batch_may_both_stay_open():
    model, lite = export(dense(grid(4, (16, 32))), (None, 16), batch_size=None)
    assert_runs_like(model, lite, inputs(3, 9, 16), 0.02)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("strides", [1, 2, (1, 3)])
@pytest.mark.parametrize("batch_size", [2, None])
def test_pointwise_convolutions_run_as_fully_connected(bits, strides, batch_size):
    kernel = grid(bits, (1, 1, 9, 12), True)
    layer = conv(kernel, strides=strides, activation="relu")
    model, lite = export(layer, (7, 5, 9), batch_size=batch_size)
    assert "FULLY_CONNECTED" in lite.ops and "CONV_2D" not in lite.ops
    assert lite.layers[0].form == f"int{bits}"
    assert_runs_like(model, lite, inputs(2, 7, 5, 9), 0.03)


@pytest.mark.parametrize("strides", [1, 2])
def test_pointwise_convolutions_take_images_of_any_size(strides):
    kernel = grid(2, (1, 1, 9, 12), True)
    model, lite = export(conv(kernel, strides=strides), (None, None, 9), batch_size=None)
    for size in ((7, 5), (4, 8)):
        assert_runs_like(model, lite, inputs(2, *size, 9), 0.03)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"padding": "valid"},
        {"padding": "same", "strides": 2},
        {"padding": "same", "dilation_rate": (2, 1)},
    ],
)
def test_larger_convolutions_run_as_int8_with_exact_integers(config, per_channel):
    kernel = grid(2, (3, 3, 6, 8), per_channel)
    model, lite = export(conv(kernel, **config, activation="relu6"), (8, 9, 6))
    assert lite.ops == ["CONV_2D"]
    ((ints, scale),) = [c for c in constants(lite, "INT8") if c[0].ndim == 4]
    np.testing.assert_array_equal(np.moveaxis(ints, 0, -1), kernel.ints)
    assert len(scale) == (8 if per_channel else 1)
    assert_runs_like(model, lite, inputs(1, 8, 9, 6), 0.03)


@pytest.mark.parametrize("optimize_for", ["latency", "size"])
def test_larger_convolutions_take_images_of_any_size(optimize_for):
    kernel = grid(2, (3, 3, 6, 8))
    layer = conv(kernel, padding="same")
    model, lite = export(layer, (None, None, 6), batch_size=None, optimize_for=optimize_for)
    for size in ((7, 5), (4, 8)):
        assert_runs_like(model, lite, inputs(2, *size, 6), 0.03)


def test_int8_beyond_the_integer_kernels_convolves_as_float():
    ints = RNG.integers(-128, 128, size=(3, 3, 4, 5))
    ints.flat[0] = -128
    model, lite = export(conv(GridKernel(ints, RNG.random(5))), (6, 6, 4))
    assert lite.layers[0].exact and lite.nbytes < 4000
    assert_runs_like(model, lite, inputs(1, 6, 6, 4), 1e-5)


def test_codebook_on_a_grid_becomes_the_integers():
    values = np.array([-0.5, 0.0, 0.25, 0.75])
    kernel = CodebookKernel(RNG.integers(0, 4, size=(64, 32)), values)
    _, lite = export(dense(kernel), (64,))
    ((ints, scale),) = [c for c in constants(lite, "INT4") if c[0].ndim == 2]
    np.testing.assert_allclose(ints.T * scale[0], kernel.dense())


@pytest.mark.parametrize("levels", [17, 100, 256])
def test_large_codebooks_become_the_nearest_int8(levels):
    values = RNG.normal(size=levels)
    kernel = CodebookKernel(RNG.integers(0, levels, size=(70, 40)), values)
    model, lite = export(dense(kernel), (70,))
    assert lite.layers[0].form == "int8, nearest to the codebook"
    ((ints, scale),) = [c for c in constants(lite, "INT8") if c[0].ndim == 2]
    assert np.abs(ints.T * scale[0] - kernel.dense()).max() <= np.abs(values).max() / 127
    assert_runs_like(model, lite, inputs(1, 70), 0.03)


def test_nearest_grid_is_no_worse_than_the_largest_value_over_127():
    for values in (RNG.normal(size=16), np.array([1.0, -0.3]), np.zeros(3)):
        ints, step = nearest_grid(values)
        plain = np.abs(values).max() / 127 or 1.0
        error = np.sum((ints * step - values) ** 2)
        assert error <= np.sum((np.round(values / plain) * plain - values) ** 2) + 1e-12
        assert np.abs(ints).max() <= 127
