"""EVBMF against the formulas, by brute force over the noise variance."""

import math

import numpy as np
import pytest

from keras_compress.decomposition import evbmf


@pytest.fixture(scope="module")
def drawn():
    """The catalogue's matrix of rank 5, and the noise matrix that the generator draws next."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=shape))[0] for shape in ((40, 5), (60, 5)))
    signal = u @ np.diag([50.0, 40.0, 30.0, 20.0, 15.0]) @ v.T
    return signal + rng.normal(size=(40, 60)), rng.normal(size=(40, 60))


def test_kim_evbmf_finds_rank_5_the_noise_and_the_threshold(drawn):
    result = evbmf(drawn[0])
    assert result.rank == 5
    assert result.sigma2 == pytest.approx(1.01683, abs=5e-6)
    assert result.threshold == pytest.approx(15.706, abs=5e-4)


def test_kim_evbmf_of_the_transpose_is_the_same(drawn):
    result, transposed = evbmf(drawn[0]), evbmf(drawn[0].T)
    assert transposed.rank == result.rank
    assert transposed.sigma2 == pytest.approx(result.sigma2, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1e-12, 1e9])
def test_kim_evbmf_does_not_depend_on_the_scale(drawn, scale):
    result, scaled = evbmf(drawn[0]), evbmf(scale * drawn[0])
    assert scaled.rank == 5
    assert scaled.sigma2 == pytest.approx(scale**2 * result.sigma2, rel=1e-6)
    assert scaled.threshold == pytest.approx(scale * result.threshold, rel=1e-6)


def test_kim_evbmf_finds_nothing_in_noise(drawn):
    assert evbmf(drawn[1]).rank == 0


def free_energy(values, sigma2, rows, columns):
    """The catalogue's sum, singular value by singular value."""
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    xbar = (1 + tau) * (1 + alpha / tau)
    total = 0.0
    for value in values:
        x = value**2 / (columns * sigma2)
        if x <= xbar:
            total += x - math.log(x)
            continue
        t = (x - (1 + alpha) + math.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha)) / 2
        total += x - t + math.log((t + 1) / x) + alpha * math.log(t / alpha + 1)
    return total, xbar


@pytest.mark.parametrize("seed", range(6))
def test_kim_evbmf_variance_is_the_best_of_a_fine_grid(seed):
    rng = np.random.default_rng(seed)
    rows, columns, rank = 12, 12 + 5 * seed, seed
    matrix = rng.normal(size=(rows, columns))
    matrix += 2 * rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    values = np.linalg.svd(matrix, compute_uv=False)
    alpha = rows / columns
    _, xbar = free_energy(values, 1.0, rows, columns)
    first = min(math.ceil(rows / (1 + alpha)) - 1, rows)
    upper = np.sum(values**2) / (rows * columns)
    lower = max(values[first] ** 2 / (columns * xbar), np.mean(values[first:] ** 2) / columns)
    grid = np.geomspace(lower, upper, 4001)
    energies = [free_energy(values, sigma2, rows, columns)[0] for sigma2 in grid]
    result = evbmf(matrix)
    assert free_energy(values, result.sigma2, rows, columns)[0] <= min(energies) + 1e-9
    assert result.sigma2 == pytest.approx(grid[np.argmin(energies)], rel=2e-3)
    assert result.rank == np.sum(values > math.sqrt(columns * result.sigma2 * xbar))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(300, 300), (40, 900)])
def test_rounding_of_a_matrix_without_noise_does_not_count_as_signal(shape, dtype):
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(shape[0], 5)) @ rng.normal(size=(5, shape[1]))
    assert evbmf(matrix.astype(dtype)).rank == 5


def test_matrices_of_one_row_of_zeros_and_of_equal_singular_values():
    assert evbmf(np.ones((1, 7))).rank == 0
    assert evbmf(np.ones((1, 1))).rank == 0
    assert evbmf(np.eye(5)).rank == 0
    assert evbmf(np.zeros((3, 4))) == evbmf(np.zeros((4, 3)))
    assert evbmf(np.zeros((3, 4))).rank == 0


@pytest.mark.parametrize(
    "matrix,message",
    [
        (np.ones((3, 3, 4, 4)), "`matrix` must have two axes"),
        (np.ones((0, 4)), "`matrix` must have two axes and entries"),
        (np.array([[1.0, np.nan]]), "`matrix` must have finite entries"),
    ],
)
def test_bad_matrices_are_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        evbmf(matrix)
