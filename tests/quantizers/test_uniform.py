"""Uniform: symmetric max-abs quantization."""

import numpy as np
import pytest
from keras import ops

from keras_compress.quantizers import Uniform
from tests.quantizers.common import normal, values


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integers_are_those_of_numpy(bits):
    w, largest = normal(7, 5, 6), 2 ** (bits - 1) - 1
    steps = np.abs(w).max(axis=(0, 1)) / np.float32(largest)
    codes = Uniform(bits).encode(w)
    np.testing.assert_allclose(codes.scale, steps, rtol=1e-6)
    np.testing.assert_array_equal(codes.ints, np.round(w / steps))
    assert np.abs(codes.ints).max(axis=(0, 1)).tolist() == [largest] * 6


def test_vanhoucke_error_of_a_weight_is_at_most_half_a_step():
    """One scale for the layer: `round(127 w / max|w|)`, error at most `max|w| / 254`."""
    w = normal(100, 20)
    codes = Uniform(8, axis=None).encode(w)
    np.testing.assert_array_equal(codes.ints, np.round(127 * w / np.abs(w).max()))
    assert np.abs(w - codes.decode()).max() <= np.abs(w).max() / 254 * (1 + 1e-5)


def test_vanhoucke_int32_accumulation_from_the_stored_integers():
    w, x = normal(64, 8), np.random.default_rng(1).integers(0, 256, (5, 64))
    codes = Uniform(8, axis=None).encode(w)
    accumulated = x.astype("int32") @ codes.ints.astype("int32")
    expected = (x / 255) @ codes.decode().astype("float64")
    np.testing.assert_allclose(accumulated * codes.scale / 255, expected, rtol=1e-5, atol=1e-5)


def test_sample_axis_gives_each_input_its_own_range():
    x = normal(4, 6, 3) * np.array([0.01, 1, 10, 1000]).reshape(4, 1, 1)
    together = values(Uniform(8, axis=0), x)
    for row, outputs in zip(x, together, strict=True):
        np.testing.assert_allclose(values(Uniform(8, axis=None), row), outputs, rtol=1e-6)


def test_zeros_stay_zero_and_a_channel_of_zeros_too():
    w = np.array([[0.0, 1.0], [0.0, -0.5]], "float32")
    np.testing.assert_allclose(values(Uniform(3), w), [[0, 1], [0, -2 / 3]], rtol=1e-6)


def test_half_precision_inputs_reach_all_levels():
    x = np.linspace(-1, 1, 255).astype("float32")
    outputs = Uniform(8, axis=None)(ops.cast(x, "bfloat16"))
    assert outputs.dtype == ops.cast(0, "bfloat16").dtype
    np.testing.assert_allclose(ops.convert_to_numpy(ops.cast(outputs, "float32")), x, atol=5e-3)


@pytest.mark.parametrize("bits", [1, 9, 4.0, True, "8"])
def test_bits_out_of_the_scheme_are_named(bits):
    with pytest.raises(ValueError, match="Uniform: `bits` must be an integer from 2 to 8; got"):
        Uniform(bits)
