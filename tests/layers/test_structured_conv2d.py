"""StructuredConv2D: what the protocol tests do not cover."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import StructuredConv2D

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(**arguments):
    layer = StructuredConv2D(6, 3, **arguments)
    layer.build((None, 8, 8, 4))
    return layer


@pytest.mark.parametrize("quantizer", [None, "ternary"])
def test_appuswamy_slices_have_four_strengths_and_with_ternary_three_levels(quantizer):
    layer = built(kernel_quantizer=quantizer)
    kernel = layer.reconstruct_kernel()
    for s, t in np.ndindex(4, 6):
        values = kernel[:, :, s, t]
        assert len(np.unique(values[values != 0].round(6))) <= 4
    if quantizer:
        assert len(np.unique(kernel)) == 3
    else:
        assert len(np.unique(kernel)) > 4 * 6


def test_appuswamy_gradient_is_that_of_the_projected_kernel():
    layer = built(use_bias=False)
    stock = layer.expand()
    x, y = inputs(4, 8, 8, 4), inputs(4, 6, 6, 6, seed=1)
    before = [ops.convert_to_numpy(each.kernel).copy() for each in (layer, stock)]
    for each in (layer, stock):
        model = keras.Sequential([keras.Input((8, 8, 4)), each])
        model.compile(keras.optimizers.SGD(1.0), "mse")
        model.train_on_batch(x, y)
    moved = [
        ops.convert_to_numpy(each.kernel) - old
        for each, old in zip((layer, stock), before, strict=True)
    ]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-5)


@pytest.mark.parametrize("quantizer, strength, scales", [(None, 32, 0), ("ternary", 2, 1)])
def test_storage_is_a_pattern_four_strengths_and_a_mask_a_slice(quantizer, strength, scales):
    layer = built(kernel_quantizer=quantizer, use_bias=False)
    # 13 patterns of 3 x 3: four bits.
    assert layer.storage_bits() == 4 * 6 * (4 + 4 * strength + 9) + 32 * scales


@on_tensorflow
def test_tflite_is_an_int8_convolution_of_the_ternary_kernel():
    from keras_compress.export import to_tflite

    layer = StructuredConv2D(32, 3, kernel_quantizer="ternary")
    model = keras.Sequential([keras.Input((8, 8, 32)), layer])
    lite = to_tflite(model, calibration=inputs(2, 8, 8, 32))
    assert lite.ops == ["CONV_2D"]
    assert lite.nbytes < 9 * 32 * 32 + 4096
    assert lite.max_error < 0.05


@on_tensorflow
@pytest.mark.parametrize("storage", ["dense", "auto"])
def test_tflite_has_no_projection_in_it(storage):
    from keras_compress.export import to_tflite

    model = keras.Sequential([keras.Input((8, 8, 4)), StructuredConv2D(6, 3)])
    lite = to_tflite(model, storage=storage, calibration=inputs(2, 8, 8, 4))
    assert lite.ops == ["CONV_2D"] and lite.max_error < 1e-4


@pytest.mark.parametrize(
    "arguments, message", [({"family": "s5"}, "`family` must be"), ({"groups": 4}, "groups")]
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"StructuredConv2D: .*{message}"):
        StructuredConv2D(6, 3, **arguments)
