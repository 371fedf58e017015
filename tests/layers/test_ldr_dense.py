"""LDRDense: what the protocol tests do not cover."""

import keras
import numpy as np
import pytest
import scipy.linalg
from keras import ops

from keras_compress.layers import LDRDense, ToeplitzLikeDense

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

FAMILIES = {
    "toeplitz": ("shift", "shift"),
    "hankel": ("shift", "transposed_shift"),
    "vandermonde": ("diagonal", "shift"),
    "cauchy": ("diagonal", "diagonal"),
}


def built(units, inputs, **arguments):
    layer = LDRDense(units, **arguments)
    layer.build((None, inputs))
    return layer


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def operators(n, pair):
    shifts = [np.eye(n, k=-1) for _ in range(2)]
    shifts[0][0, -1], shifts[1][0, -1] = 1, -1
    nodes = (2 * np.arange(n) + 0.5 - n) / n
    chosen = []
    for name, shift, diagonal in zip(pair, shifts, (nodes, nodes + 1 / n), strict=True):
        forms = {"shift": shift, "transposed_shift": shift.T, "diagonal": np.diag(diagonal)}
        chosen.append(forms[name])
    return chosen


@pytest.mark.parametrize("family", FAMILIES)
def test_zhao_displacement_has_the_rank(family):
    layer = built(14, 14, rank=3, operators=FAMILIES[family])
    a, b = operators(14, FAMILIES[family])
    matrix = layer.reconstruct_kernel().T
    values = np.linalg.svd(a @ matrix - matrix @ b, compute_uv=False)
    assert values[2] > 1e-3 * values[0] and values[3] < 1e-5 * values[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("units, size", [(10, 10), (6, 11), (11, 6)])
def test_zhao_layer_equals_dense_of_the_solution_of_its_equation(family, units, size):
    layer = built(units, size, rank=2, operators=FAMILIES[family], use_bias=False)
    a, b = operators(max(units, size), FAMILIES[family])
    g, h = (ops.convert_to_numpy(each).astype("float64") for each in (layer.g, layer.h))
    matrix = scipy.linalg.solve_sylvester(a, -b, g @ h.T)[:units, :size]
    x = inputs(4, size)
    np.testing.assert_allclose(layer(x), x @ matrix.T, atol=1e-4)


def test_zhao_sylvester_of_shifts_is_toeplitz_like_dense():
    layer = built(8, 12, rank=3, operators=("shift", "shift"))
    other = ToeplitzLikeDense(8, rank=3)
    other.build((None, 12))
    other.set_weights(layer.get_weights())
    x = inputs(4, 12)
    np.testing.assert_array_equal(layer(x), other(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_zhao_one_hidden_layer_fits_a_sine(family):
    """Universality: random hidden weights of the form, the output layer by least squares."""
    keras.utils.set_random_seed(0)
    layer = built(
        64,
        1,
        rank=2,
        operators=FAMILIES[family],
        activation="tanh",
        kernel_initializer=keras.initializers.RandomNormal(stddev=1.0),
        bias_initializer=keras.initializers.RandomNormal(stddev=1.0),
    )
    x = np.linspace(-np.pi, np.pi, 200, dtype="float32")[:, None]
    hidden = ops.convert_to_numpy(layer(x)).astype("float64")
    output = np.linalg.lstsq(hidden, np.sin(x), rcond=1e-8)[0]
    assert np.abs(hidden @ output - np.sin(x)).max() < 1e-2


@on_tensorflow
@pytest.mark.parametrize("right", ["shift", "transposed_shift"])
def test_tflite_of_two_shifts_stores_the_generators_alone(right):
    from keras_compress.export import to_tflite

    layer = LDRDense(300, rank=3, operators=("transposed_shift", right))
    model = keras.Sequential([keras.Input((300,)), layer])
    lite = to_tflite(model, calibration=inputs(2, 300))
    assert lite.nbytes < 1.15 * layer.storage_bits() / 8 + 8192
    assert lite.max_error < 1e-4


@on_tensorflow
def test_tflite_of_a_diagonal_is_the_dense_layer():
    from keras_compress.export import to_tflite

    layer = LDRDense(64, rank=2, operators=("diagonal", "shift"))
    model = keras.Sequential([keras.Input((96,)), layer])
    lite = to_tflite(model, calibration=inputs(2, 96))
    assert lite.ops == ["FULLY_CONNECTED"] and lite.max_error < 1e-4
    assert layer.macs() == 64 * 96


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"operators": ("shift", "diag")}, "Did you mean 'diagonal'"),
        ({"operators": "toeplitz"}, "must be a pair of"),
        ({"rank": 0}, "`rank` must be a positive integer"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=f"LDRDense: .*{message}"):
        LDRDense(12, **arguments)
