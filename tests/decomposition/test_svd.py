"""Truncated SVD by the Gram matrix against numpy's."""

import numpy as np
import pytest

from keras_compress.decomposition import decompose
from keras_compress.decomposition.linalg import squared_spectrum, truncated_svd

SHAPES = [(30, 12), (12, 30), (3, 2, 5, 8), (1, 1, 9, 4), (2, 2, 1, 7)]


def unfolded(shape, seed=0):
    kernel = np.random.default_rng(seed).normal(size=shape)
    return kernel, kernel.reshape(-1, shape[-1])


@pytest.mark.parametrize("shape", SHAPES)
def test_denton_svd_error_is_the_sum_of_the_dropped_squared_singular_values(shape):
    kernel, matrix = unfolded(shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, len(values) + 1):
        factors = decompose(kernel, "svd", rank)
        squared = np.sum((factors.reconstruct() - kernel) ** 2)
        assert squared == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-9, abs=1e-18)
        relative = np.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2))
        assert factors.error(kernel) == pytest.approx(relative, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_denton_svd_is_the_truncation_of_numpys(shape):
    kernel, matrix = unfolded(shape, seed=1)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = len(s) // 2
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
    found = decompose(kernel, "svd", rank).reconstruct()
    np.testing.assert_allclose(found, expected.reshape(shape), atol=1e-10)


def test_the_two_factors_share_each_singular_value():
    _, matrix = unfolded((20, 9), seed=2)
    left, right = truncated_svd(matrix, 6)
    values = np.linalg.svd(matrix, compute_uv=False)[:6]
    np.testing.assert_allclose(left.T @ left, np.diag(values), atol=1e-10)
    np.testing.assert_allclose(right @ right.T, np.diag(values), atol=1e-10)


def test_svd_params_and_the_convolutions_it_runs_as():
    kernel, _ = unfolded((3, 2, 5, 8))
    factors = decompose(kernel, "svd", 4)
    assert factors.params() == 4 * (3 * 2 * 5 + 8)
    assert [a.shape for a in factors.arrays] == [(3, 2, 5, 4), (1, 1, 4, 8)]
    expected = np.einsum("ijsr,rt->ijst", factors.arrays[0], factors.arrays[1][0, 0])
    np.testing.assert_allclose(factors.reconstruct(), expected, atol=1e-12)


def test_float32_kernels_are_fitted_as_well_as_float32_can():
    kernel = unfolded((64, 48), seed=3)[0].astype("float32")
    factors = decompose(kernel, "svd", 48)
    assert all(a.dtype == np.float32 for a in factors.arrays)
    assert factors.error(kernel) < 1e-6


def test_kernels_of_less_than_the_rank_asked_for_give_no_noise():
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 15))
    factors = decompose(kernel, "svd", 6)
    assert factors.error(kernel) < 1e-12
    zeros = decompose(np.zeros((6, 5)), "svd", 3)
    np.testing.assert_array_equal(zeros.reconstruct(), np.zeros((6, 5)))
    assert zeros.error(np.zeros((6, 5))) == 0


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (1, 5), (5, 1)])
def test_squared_spectrum_equals_numpys_singular_values(shape):
    matrix = np.random.default_rng(5).normal(size=shape)
    expected = np.linalg.svd(matrix, compute_uv=False) ** 2
    np.testing.assert_allclose(squared_spectrum(matrix), expected, rtol=1e-9)


def test_gram_of_many_blocks_equals_that_of_one(monkeypatch):
    from keras_compress.decomposition import linalg

    matrix = np.random.default_rng(6).normal(size=(50, 4)).astype("float32")
    monkeypatch.setattr(linalg, "_BLOCK_ELEMENTS", 12)
    expected = matrix.astype("float64").T @ matrix.astype("float64")
    np.testing.assert_allclose(linalg.gram(matrix), expected, rtol=1e-12)
