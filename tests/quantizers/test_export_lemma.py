"""The export lemma: levels on an integer grid are exact in the file, in the narrowest integers."""

import keras
import numpy as np
import pytest

from keras_compress import layers
from keras_compress.quantizers import (
    DoReFaWeight,
    DynamicTree8,
    FixedPoint,
    PowerOfTwo,
    ResidualSign,
    Sign,
    StochasticTernary,
    Ternary,
    Uniform,
    UniformL2,
    UnitUniform,
)
from tests.quantizers.test_every_quantizer import label

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="conversion needs the TensorFlow backend"
)

#: Quantizers whose levels are integers up to 127 times a step, and the bits of the file.
ON_A_GRID = [
    (Sign(), 2),
    (Sign("mean_abs"), 2),
    (Ternary(), 2),
    (Ternary(axis=-1), 2),
    (Ternary(scale=None), 2),
    (StochasticTernary(), 2),
    (StochasticTernary("latent"), 8),
    (Uniform(2), 2),
    (Uniform(3), 4),
    (Uniform(4), 4),
    (Uniform(4, axis=None), 4),
    (Uniform(8), 8),
    (UniformL2(3), 2),
    (UniformL2(7), 4),
    (UniformL2(7, step=0.1), 4),
    (UniformL2(15, axis=-1), 4),
    (UniformL2(255), 8),
    (FixedPoint(4, 1), 4),
    (FixedPoint(8, 5), 8),
    (DoReFaWeight(1), 2),
    (DoReFaWeight(2), 4),
    (DoReFaWeight(3), 4),
    (DoReFaWeight(4), 8),
    (DoReFaWeight(7), 8),
    (UnitUniform(2), 4),
    (UnitUniform(7), 8),
    (PowerOfTwo(2), 2),
    (PowerOfTwo(3), 4),
    (PowerOfTwo(4), 8),
    (ResidualSign(1), 2),
    (ResidualSign(1, axis=None), 2),
]

#: Quantizers whose levels are on no such grid, and the largest error of a weight in the file, in
#: parts of the largest weight of its channel.
OFF_THE_GRID = [
    (DoReFaWeight(8), 1 / 254),
    (PowerOfTwo(5), 1 / 254),
    (PowerOfTwo(4, terms=2), 1 / 254),
    (DynamicTree8(), 1 / 254),
    (ResidualSign(2), 1 / 254),
    (ResidualSign(3, refine=True), 1 / 254),
    (FixedPoint(16, 12), 0.0),
    (FixedPoint(24, 20), 0.0),
]


def exported(cls, input_shape, **arguments):
    """A layer with a normal kernel, and its weights in the file."""
    from keras_compress.export import to_tflite
    from tests.quantizers.stored_weights import stored_weights

    layer = cls(**arguments)
    model = keras.Sequential([keras.Input(input_shape), layer])
    # Three deviations at most: a saturated word would use the lowest code of all.
    kernel = np.clip(np.random.default_rng(0).normal(size=layer.kernel.shape), -3, 3)
    layer.kernel.assign(kernel)
    bits, ints, scale = stored_weights(to_tflite(model).content)
    kernel = np.moveaxis(layer.reconstruct_kernel(), -1, 0).reshape(len(ints), -1)
    return kernel, bits, ints.reshape(len(ints), -1), scale


def cases(pairs):
    return [pytest.param(*pair, id=label(pair[0])) for pair in pairs]


@pytest.mark.parametrize("quantizer,bits", cases(ON_A_GRID))
def test_dense_levels_on_a_grid_are_exact_in_the_file(quantizer, bits):
    arguments = {"units": 40, "kernel_quantizer": quantizer}
    kernel, stored_bits, ints, scale = exported(layers.QuantDense, (256,), **arguments)
    assert stored_bits == bits
    np.testing.assert_array_equal(ints.astype("float32") * scale[:, None], kernel)


@pytest.mark.parametrize("quantizer,bits", cases([ON_A_GRID[i] for i in (1, 2, 9, 19, 27)]))
@pytest.mark.parametrize("size", [1, 3])
def test_convolution_levels_on_a_grid_are_exact_in_the_file(quantizer, bits, size):
    """1x1 kernels in as few bits as dense ones, 3x3 kernels in int8, which LiteRT has fast."""
    arguments = {"filters": 24, "kernel_size": size, "kernel_quantizer": quantizer}
    kernel, stored_bits, ints, scale = exported(layers.QuantConv2D, (6, 6, 96), **arguments)
    assert stored_bits == (bits if size == 1 else 8)
    np.testing.assert_array_equal(ints.astype("float32") * scale[:, None], kernel)


@pytest.mark.parametrize("quantizer,error", cases(OFF_THE_GRID))
def test_levels_off_the_grid_are_the_nearest_int8_or_float(quantizer, error):
    arguments = {"units": 40, "kernel_quantizer": quantizer}
    kernel, bits, ints, scale = exported(layers.QuantDense, (256,), **arguments)
    assert bits == (8 if error else 32)
    stored = ints if scale is None else ints * scale[:, None]
    largest = np.abs(kernel).max(axis=1 if isinstance(quantizer, ResidualSign) else None)
    assert (np.abs(stored - kernel).max(axis=1) <= error * largest * (1 + 1e-4)).all()


def test_a_codebook_of_the_layer_is_stored_as_codes():
    from keras_compress.export import to_tflite

    layer = layers.QuantDense(
        256, use_bias=False, kernel_quantizer=ResidualSign(2, axis=None, refine=True)
    )
    model = keras.Sequential([keras.Input((256,)), layer])
    lite = to_tflite(model)
    (stored,) = lite.layers
    assert stored.form == "2-bit codes, decoded once"
    assert stored.nbytes < 256 * 256 / 4 + 4000
    x = np.random.default_rng(1).normal(size=(5, 256)).astype("float32")
    expected = x @ layer.reconstruct_kernel()
    np.testing.assert_allclose(lite.predict(x), expected, atol=0.02 * np.abs(expected).max())
