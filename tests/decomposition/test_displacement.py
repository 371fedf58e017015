"""Matrices of low displacement rank against explicit operators and sums."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from keras import ops

from keras_compress.decomposition import (
    displacement,
    displacement_matvec,
    displacement_to_matrix,
    fit_displacement,
    stein_to_matrix,
)
from keras_compress.decomposition.displacement import (
    OPERATORS,
    CorrelationForm,
    check_operators,
    displacement_gain,
)
from tests.gradients import gradient

TOEPLITZ = ("shift", "shift")
PAIRS = list(itertools.product(OPERATORS, OPERATORS))
SHIFTS = [pair for pair in PAIRS if "diagonal" not in pair]


def shift(n, f):
    """Z_f: down by one, f in the corner."""
    matrix = np.zeros((n, n))
    for i in range(1, n):
        matrix[i, i - 1] = 1
    matrix[0, n - 1] += f
    return matrix


def nodes(n):
    return np.array([(2 * i + 0.5 - n) / n for i in range(n)])


def operators(n, pair):
    a = {"shift": shift(n, 1), "transposed_shift": shift(n, 1).T, "diagonal": np.diag(nodes(n))}
    b = {"shift": shift(n, -1), "transposed_shift": shift(n, -1).T}
    b["diagonal"] = np.diag(nodes(n) + 1 / n)
    return a[pair[0]], b[pair[1]]


def generators(n, rank, seed=0):
    return np.random.default_rng(seed).normal(size=(2, n, rank)).astype("float32")


def rank_of(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return int(np.sum(values > 1e-5 * values[0]))


def f_circulant(vector, f):
    """Z_f(v), whose k-th column is Z_f^k v."""
    columns = [vector]
    for _ in vector[1:]:
        columns.append(shift(len(vector), f) @ columns[-1])
    return np.array(columns).T


@pytest.mark.parametrize("n", [6, 7, 300])
@pytest.mark.parametrize("pair", PAIRS)
def test_zhao_matrix_satisfies_the_displacement_equation(pair, n):
    g, h = generators(n, 2)
    matrix = displacement_to_matrix(g, h, pair)
    a, b = operators(n, pair)
    equation = a @ matrix - matrix @ b
    tolerance = 1e-5 * max(1, np.abs(matrix).max())
    np.testing.assert_allclose(equation, g @ h.T, atol=tolerance)
    assert np.linalg.svd(equation, compute_uv=False)[2] < n * tolerance
    np.testing.assert_allclose(displacement(matrix, pair), equation, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
def test_zhao_matrix_is_that_of_scipys_sylvester_solver(pair):
    g, h = generators(8, 3)
    a, b = operators(8, pair)
    expected = scipy.linalg.solve_sylvester(a, -b, (g @ h.T).astype("float64"))
    np.testing.assert_allclose(displacement_to_matrix(g, h, pair), expected, atol=1e-5)


def test_sindhwani_matrix_is_a_sum_of_products_of_circulants():
    g, h = generators(6, 3)
    expected = sum(
        f_circulant(x, 1) @ f_circulant(y[::-1], -1) for x, y in zip(g.T, h.T, strict=True)
    )
    np.testing.assert_allclose(displacement_to_matrix(g, h), expected / 2, atol=1e-5)


def test_sindhwani_displacement_ranks_of_toeplitz_inverse_product_and_circulant():
    rng = np.random.default_rng(0)
    first, second = (scipy.linalg.toeplitz(*rng.normal(size=(2, 6))) for _ in range(2))
    assert rank_of(displacement(first)) == 2
    assert rank_of(displacement(np.linalg.inv(first))) == 2
    assert rank_of(displacement(first @ second)) == 4
    assert rank_of(displacement(scipy.linalg.circulant(rng.normal(size=6)))) == 1
    assert rank_of(displacement(scipy.linalg.hankel(*rng.normal(size=(2, 6))))) > 2
    hankel = scipy.linalg.hankel(*rng.normal(size=(2, 6)))
    assert rank_of(displacement(hankel, ("shift", "transposed_shift"))) == 2
    powers = np.vander(nodes(6), 6, increasing=True)
    assert rank_of(displacement(powers, ("diagonal", "shift"))) == 1


def test_zhao_cauchy_is_the_closed_form():
    g, h = generators(9, 2)
    a, b = nodes(9), nodes(9) + 1 / 9
    expected = [[g[i] @ h[j] / (a[i] - b[j]) for j in range(9)] for i in range(9)]
    matrix = displacement_to_matrix(g, h, ("diagonal", "diagonal"))
    np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pair", SHIFTS)
def test_zhao_krylov_sum_satisfies_its_stein_equation(pair):
    n = 7
    g, h = generators(n, 2)
    a, b = operators(n, pair)
    matrix = stein_to_matrix(g, h, pair)
    np.testing.assert_allclose(matrix - a @ matrix @ b, g @ h.T, atol=1e-5)
    power = np.linalg.matrix_power
    krylov = sum(power(a, k) @ g @ h.T @ power(b, k) for k in range(n)) / (1 - 1 * -1)
    np.testing.assert_allclose(matrix, krylov, atol=1e-5)


def test_stein_of_a_diagonal_is_refused():
    with pytest.raises(ValueError, match="Krylov sum needs .* got operators=.'diagonal'"):
        stein_to_matrix(*generators(4, 1), ("diagonal", "shift"))


@pytest.mark.parametrize("pair", PAIRS)
def test_matvec_is_the_product_with_the_matrix_and_so_is_its_gradient(pair):
    n = 9
    g, h = generators(n, 2)
    x, y = np.random.default_rng(1).normal(size=(2, 4, n)).astype("float32")
    a, b = operators(n, pair)
    matrix = scipy.linalg.solve_sylvester(a, -b, (g @ h.T).astype("float64"))
    np.testing.assert_allclose(displacement_matvec(x, g, h, pair), x @ matrix.T, atol=1e-4)

    # The product is linear in G: its derivative is the product of each unit generator.
    expected = np.zeros(g.shape)
    for index in np.ndindex(*g.shape):
        unit = np.zeros(g.shape)
        unit[index] = 1
        expected[index] = np.sum(x @ scipy.linalg.solve_sylvester(a, -b, unit @ h.T).T * y)
    actual = gradient(lambda v: ops.sum(displacement_matvec(x, v, h, pair) * y), g)
    np.testing.assert_allclose(actual, expected, atol=1e-3)


@pytest.mark.parametrize("pair", PAIRS)
def test_zhao_full_rank_reproduces_a_random_matrix(pair):
    matrix = np.random.default_rng(2).normal(size=(12, 12))
    g, h = fit_displacement(matrix, 12, pair)
    np.testing.assert_allclose(displacement_to_matrix(g, h, pair), matrix, atol=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_fit_recovers_a_matrix_of_its_displacement_rank(pair):
    matrix = displacement_to_matrix(*generators(16, 3), pair)
    fitted = displacement_to_matrix(*fit_displacement(matrix, 3, pair), pair)
    np.testing.assert_allclose(fitted, matrix, atol=1e-5 * np.abs(matrix).max())


def test_fit_of_a_large_matrix_recovers_it_too():
    matrix = displacement_to_matrix(*generators(512, 2))
    fitted = displacement_to_matrix(*fit_displacement(matrix, 2))
    np.testing.assert_allclose(fitted, matrix, atol=1e-5 * np.abs(matrix).max())


def test_ranks_and_operators_that_cannot_be_are_refused():
    matrix = np.eye(4)
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 4; got rank=5"):
        fit_displacement(matrix, 5)
    for function in (displacement, lambda m, pair: displacement_matvec(m, m, m, pair)):
        with pytest.raises(ValueError, match="Did you mean 'shift'"):
            function(matrix, ("shift", "shft"))


def test_fit_of_zeros_is_zeros():
    g, h = fit_displacement(np.zeros((6, 4)), 2)
    np.testing.assert_array_equal(displacement_to_matrix(g, h), np.zeros((6, 6)))


@pytest.mark.parametrize("pair", [TOEPLITZ, ("diagonal", "shift"), ("diagonal", "diagonal")])
@pytest.mark.parametrize("shape", [(24, 24), (24, 15), (10, 24)])
def test_fit_is_a_stationary_point_of_the_error_of_the_matrix(pair, shape):
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=shape)
    g, h = fit_displacement(matrix, 2, pair)

    def error(g, h):
        fitted = displacement_to_matrix(g, h, pair)[: shape[0], : shape[1]]
        return np.linalg.norm(fitted - matrix) / np.linalg.norm(matrix)

    best = error(g, h)
    # Better than zeros, which the SVD of the displacement alone is not.
    assert best < 0.98
    for _ in range(5):
        step = 0.1 * rng.normal(size=(2, *g.shape)) * np.std(g)
        assert error(g + step[0], h + step[1]) > best - 1e-3


@pytest.mark.parametrize("pair", PAIRS)
def test_gain_is_the_variance_of_the_entries(pair):
    rng = np.random.default_rng(4)
    squares = [
        np.mean(displacement_to_matrix(*rng.normal(size=(2, 10, 1)), pair) ** 2) for _ in range(300)
    ]
    assert np.mean(squares) == pytest.approx(displacement_gain(10, pair), rel=0.3)


@pytest.mark.parametrize("n", [5, 16, 37])
@pytest.mark.parametrize("pair", SHIFTS)
def test_sindhwani_two_correlations_give_the_product(pair, n):
    g, h = generators(n, 3)
    x = np.random.default_rng(5).normal(size=(4, n)).astype("float32")
    form = CorrelationForm(n, 3, pair)
    constants = form.constants(g, h)
    # The window's identity is stored with them.
    assert form.stored() == sum(each.size for each in constants.values()) + 16 * 16
    expected = x @ displacement_to_matrix(g, h, pair).T
    np.testing.assert_allclose(form.matvec(x, constants), expected, atol=1e-4)


@pytest.mark.parametrize(
    "pair, message",
    [
        ("shift", "must be a pair"),
        (("shift",), "must be a pair"),
        (("shift", "diag"), r"operators\[1\]` must be one of .* Did you mean 'diagonal'"),
    ],
)
def test_unknown_operators_are_refused(pair, message):
    with pytest.raises(ValueError, match=message):
        check_operators(pair)
