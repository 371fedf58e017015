"""Block-circulant algebra against explicit matrices, numpy's FFT and brute force."""

import keras
import numpy as np
import pytest
import scipy.linalg
from keras import ops

from keras_compress.decomposition import circulant
from tests.gradients import gradient


def random_vectors(p, q, b, seed=0):
    return np.random.default_rng(seed).normal(size=(p, q, b)).astype("float32")


def explicit_matrix(vectors):
    """The matrix that rows are multiplied by: transposed circulants, block by block."""
    return np.block([[scipy.linalg.circulant(w).T for w in row] for row in vectors])


def relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("p,q,b", [(1, 1, 7), (2, 3, 4), (3, 2, 5), (1, 2, 6), (2, 2, 2)])
def test_matrix_equals_scipy_circulant_blocks(p, q, b):
    vectors = random_vectors(p, q, b)
    expected = explicit_matrix(vectors)
    np.testing.assert_array_equal(
        circulant.circulant_to_matrix(vectors, p * b, q * b), expected.astype("float32")
    )
    cut = circulant.circulant_to_matrix(vectors, p * b - 1, q * b - 1)
    np.testing.assert_array_equal(cut, expected[:-1, :-1].astype("float32"))


# Both kinds of DFT (matmul up to 128 points, FFT beyond), odd and even sizes.
@pytest.mark.parametrize(
    "p,q,b", [(1, 1, 1), (1, 1, 16), (2, 3, 5), (3, 2, 8), (2, 2, 129), (1, 1, 130), (1, 2, 256)]
)
def test_product_equals_the_explicit_matrix(p, q, b):
    vectors = random_vectors(p, q, b)
    x = np.random.default_rng(1).normal(size=(3, p * b)).astype("float32")
    y = circulant.circulant_matmul(ops.convert_to_tensor(x), ops.convert_to_tensor(vectors))
    assert relative_error(y, x @ explicit_matrix(vectors)) < 1e-5


@pytest.mark.parametrize("p,b", [(32, 128), (1, 4096)])
def test_float32_product_at_4096_has_the_error_of_an_fft(p, b):
    vectors = random_vectors(p, p, b)
    x = np.random.default_rng(1).normal(size=(2, p * b)).astype("float32")
    spectrum = np.einsum(
        "rpf,pqf->rqf", np.fft.fft(x.reshape(2, p, b).astype("float64")), np.fft.fft(vectors)
    )
    expected = np.fft.ifft(spectrum).real.reshape(2, p * b)
    y = circulant.circulant_matmul(ops.convert_to_tensor(x), ops.convert_to_tensor(vectors))
    assert relative_error(y, expected) < 1e-5
    form = circulant.inference_form(p, p, b)
    assert relative_error(form.matmul(x, form.constants(vectors)), expected) < 1e-5


@pytest.mark.parametrize("b", [12, 150])
def test_cheng_gradients_equal_the_fft_formulas(b):
    vectors = random_vectors(1, 1, b)
    x, g = np.random.default_rng(1).normal(size=(2, 1, b)).astype("float32")
    spectrum = np.fft.fft(g[0])
    to_vectors = np.fft.ifft(spectrum * np.conj(np.fft.fft(x[0]))).real
    to_inputs = np.fft.ifft(spectrum * np.conj(np.fft.fft(vectors[0, 0]))).real
    actual = gradient(
        lambda w: ops.sum(circulant.circulant_matmul(ops.convert_to_tensor(x), w) * g), vectors
    )
    np.testing.assert_allclose(actual[0, 0], to_vectors, atol=1e-4)
    actual = gradient(
        lambda v: ops.sum(circulant.circulant_matmul(v, ops.convert_to_tensor(vectors)) * g), x
    )
    np.testing.assert_allclose(actual[0], to_inputs, atol=1e-4)


def test_half_precision_is_lost_only_in_operands_and_result():
    vectors, x = random_vectors(2, 2, 64), random_vectors(1, 3, 128, 1)[0]
    low = [ops.cast(a, "bfloat16") for a in (x, vectors)]
    y = circulant.circulant_matmul(*low)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    x, vectors = (ops.convert_to_numpy(ops.cast(a, "float32")) for a in low)
    # 2^-8 of the result's rounding, nothing more.
    assert relative_error(ops.cast(y, "float32"), x @ explicit_matrix(vectors)) < 2**-8


def test_displacement_rank_of_a_circulant():
    matrix = circulant.circulant_to_matrix(random_vectors(1, 1, 6), 6, 6)
    shift = np.roll(np.eye(6), 1, axis=0)
    skew = shift.copy()
    skew[0, -1] = -1
    np.testing.assert_allclose(shift @ matrix, matrix @ shift, atol=1e-6)
    assert np.linalg.matrix_rank(shift @ matrix - matrix @ skew, tol=1e-5) == 1


@pytest.mark.parametrize("rows,columns,b", [(6, 6, 6), (7, 5, 3), (5, 9, 4), (4, 9, 9), (6, 4, 2)])
def test_fit_is_the_least_squares_optimum(rows, columns, b):
    matrix = np.random.default_rng(0).normal(size=(rows, columns))
    p, q = circulant.block_counts(rows, columns, b)
    basis = np.eye(p * q * b).reshape(-1, p, q, b)
    basis = [circulant.circulant_to_matrix(e, rows, columns).ravel() for e in basis]
    # The solution of least norm: 0 for weights that reach no entry.
    expected, *_ = np.linalg.lstsq(np.transpose(basis), matrix.ravel(), rcond=None)
    fitted = circulant.fit_circulant(matrix, b)
    np.testing.assert_allclose(fitted, expected.reshape(p, q, b), atol=1e-6)


def test_fit_recovers_a_block_circulant_matrix():
    vectors = random_vectors(3, 2, 5)
    matrix = circulant.circulant_to_matrix(vectors, 14, 9)
    np.testing.assert_allclose(circulant.fit_circulant(matrix, 5), vectors, atol=1e-6)


# Fewer and more output than input blocks, odd and even sizes.
@pytest.mark.parametrize("p,q,b", [(2, 2, 8), (3, 2, 5), (2, 3, 5), (4, 1, 6), (1, 4, 7)])
def test_one_stage_equals_the_explicit_matrix(p, q, b):
    assert_form_is_exact(circulant.OneStage(p, q, b))


# Two even factors, uneven ones, an odd inner or outer one, and primes: embedded in a larger one.
@pytest.mark.parametrize(
    "p,q,b", [(1, 1, 64), (2, 3, 30), (3, 1, 35), (1, 2, 48), (1, 1, 37), (2, 2, 11), (1, 1, 127)]
)
def test_two_stages_equal_the_explicit_matrix(p, q, b):
    assert_form_is_exact(circulant.TwoStages(p, q, b))


def assert_form_is_exact(form):
    vectors = random_vectors(form.p, form.q, form.b)
    constants = form.constants(vectors)
    assert all(array.dtype == "float32" for array in constants.values())
    assert form.stored() == sum(array.size for array in constants.values())
    x = np.random.default_rng(1).normal(size=(3, form.p * form.b)).astype("float32")
    y = form.matmul(ops.convert_to_tensor(x), constants)
    assert relative_error(y, x @ explicit_matrix(vectors)) < 1e-5


def test_a_prime_size_is_embedded_in_a_circulant_of_two_even_factors():
    form = circulant.TwoStages(1, 1, 1009)
    n = form.n1 * form.n2
    assert 2 * 1009 - 1 <= n < 2 * 1009 + 64
    assert form.stored() < 1009**2 / 20


@pytest.mark.parametrize(
    "p,q,b,form",
    [
        (32, 32, 128, circulant.OneStage),
        (16, 16, 64, circulant.OneStage),
        (8, 8, 128, circulant.TwoStages),
        (16, 16, 256, circulant.TwoStages),
        (1, 1, 4096, circulant.TwoStages),
    ],
)
def test_inference_form_is_the_smaller_one(p, q, b, form):
    chosen = circulant.inference_form(p, q, b)
    assert type(chosen) is form
    assert chosen.macs() < p * q * b * b


def test_macs_of_both_forms_by_hand():
    # 2 and 3 blocks of 8: 5 frequencies; the DFT matrix of the inputs is 8 x 20.
    assert circulant.OneStage(2, 3, 8).macs() == 2 * 8 * 20 + 5 * 2 * 4 * 3 + 3 * 10 * 8
    form = circulant.TwoStages(1, 1, 64)
    assert (form.n1, form.n2) == (8, 8)
    first, inner = 8 * 8 * 10, 5 * 32 * 16
    twiddles, spectra = 4 * 5 * 8, 4 * 5 * 8
    inverse_inner, last = 5 * 16 * 16, 8 * 20 * 8
    assert form.macs() == first + inner + 2 * twiddles + spectra + inverse_inner + last
