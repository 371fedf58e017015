"""DoReFaWeight and DoReFaActivation (UnitUniform)."""

import numpy as np
import pytest
from keras import ops

from keras_compress import quantizers
from keras_compress.quantizers import DoReFaActivation, DoReFaWeight, UnitUniform
from tests.gradients import gradient
from tests.quantizers.common import normal, values


def quantize_k(r, k):
    return np.round((2**k - 1) * r) / (2**k - 1)


def test_quantize_k_of_the_catalogue_rounds_half_to_even():
    np.testing.assert_allclose(values(UnitUniform(2), [0.4, 0.5]), [1 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_are_the_formula_of_the_paper(bits):
    w = normal(40, 6)
    bounded = np.tanh(w.astype("float64"))
    unit = bounded / (2 * np.abs(bounded).max()) + 0.5
    expected = 2 * quantize_k(unit, bits) - 1
    outputs = values(DoReFaWeight(bits), w)
    # A position half way between levels may fall to either side.
    away = np.abs((2**bits - 1) * unit % 1 - 0.5) > 1e-4
    np.testing.assert_allclose(outputs[away], expected[away], atol=1e-6)
    assert np.abs(outputs).max() == 1 and (outputs != 0).all()


def test_weights_of_two_bits_have_four_levels_and_never_zero():
    outputs = values(DoReFaWeight(2), normal(1000))
    np.testing.assert_allclose(np.unique(outputs), [-1, -1 / 3, 1 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(DoReFaWeight(2).levels(normal(5)), [[-1, -1 / 3, 1 / 3, 1]])


def test_weights_of_one_bit_are_signs_times_the_mean_magnitude_of_the_layer():
    w = normal(30, 5)
    np.testing.assert_allclose(
        values(DoReFaWeight(1), w), np.where(w >= 0, 1, -1) * np.abs(w).mean(), rtol=1e-6
    )
    upstream = normal(30, 5, seed=1)
    grad = gradient(lambda w: ops.sum(DoReFaWeight(1)(w) * upstream), w)
    np.testing.assert_array_equal(grad, upstream)


def test_weight_gradient_is_the_derivative_around_quantize_k():
    """Against a central difference of `tanh(w) / max|tanh(w)|`, the largest weight included."""
    w, upstream = normal(20), normal(20, seed=1)
    grad = gradient(lambda w: ops.sum(DoReFaWeight(3)(w) * upstream), w)

    def smooth(w):
        return np.sum(upstream * np.tanh(w) / np.abs(np.tanh(w)).max())

    expected = []
    for i in range(20):
        h = np.zeros(20)
        h[i] = 1e-5
        expected.append((smooth(w + h) - smooth(w - h)) / 2e-5)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_activations_take_two_to_the_k_values(bits):
    a = np.linspace(-0.5, 1.5, 5001)
    outputs = values(DoReFaActivation(bits), a)
    assert len(np.unique(outputs)) == 2**bits
    np.testing.assert_allclose(np.unique(outputs), np.arange(2**bits) / (2**bits - 1), atol=1e-6)
    assert np.abs(outputs - np.clip(a, 0, 1)).max() <= 0.5 / (2**bits - 1) + 1e-6


def test_activation_gradient_is_zero_exactly_outside_of_the_unit_interval():
    a = np.array([-2, -1e-6, 0, 0.3, 1, 1.0001, np.inf], "float32")
    upstream = normal(7)
    grad = gradient(lambda a: ops.sum(UnitUniform(4)(a) * upstream), a)
    np.testing.assert_array_equal(grad, upstream * [0, 0, 1, 1, 1, 0, 0])


def test_half_precision_activations_of_eight_bits_keep_their_levels():
    a = ops.cast(np.linspace(0, 1, 256).astype("float32"), "float16")
    outputs = ops.convert_to_numpy(ops.cast(UnitUniform(8)(a), "float32"))
    np.testing.assert_allclose(outputs, np.arange(256) / 255, atol=5e-4)


def test_names():
    assert DoReFaActivation is UnitUniform
    assert type(quantizers.get("dorefa_activation")) is UnitUniform
    for cls in (DoReFaWeight, UnitUniform):
        with pytest.raises(ValueError, match="`bits` must be an integer from 1 to 8"):
            cls(9)
