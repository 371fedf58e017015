"""Tucker-2 against tensorly and the definition."""

import numpy as np
import pytest
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import multi_mode_dot

from keras_compress.decomposition import TuckerFactors, decompose, evbmf


def low_rank_kernel(shape=(3, 3, 12, 16), rank=(4, 5), noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    height, width, inputs, outputs = shape
    kernel = np.einsum(
        "ijpq,sp,tq->ijst",
        rng.normal(size=(height, width, *rank)),
        rng.normal(size=(inputs, rank[0])),
        rng.normal(size=(outputs, rank[1])),
    )
    return kernel + noise * rng.normal(size=shape)


def bases(factors):
    first, core, last = factors.arrays
    return first[0, 0], core, last[0, 0].T


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (3, 1, 8, 4), (1, 1, 6, 6), (3, 3, 1, 9)])
def test_kim_full_rank_is_exact(shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    factors = decompose(kernel, "tucker", TuckerFactors.limits(shape))
    assert factors.error(kernel) < 1e-12


def test_kim_recovers_a_kernel_of_low_rank():
    kernel = low_rank_kernel()
    assert decompose(kernel, "tucker", (4, 5)).error(kernel) < 1e-7


@pytest.mark.parametrize("rank", [(1, 1), (4, 6), (12, 6), (4, 16), (3, 9)])
def test_kim_bases_are_orthonormal_and_the_core_is_the_projected_kernel(rank):
    kernel = np.random.default_rng(1).normal(size=(3, 3, 12, 16))
    u, core, v = bases(decompose(kernel, "tucker", rank))
    np.testing.assert_allclose(u.T @ u, np.eye(rank[0]), atol=1e-12)
    np.testing.assert_allclose(v.T @ v, np.eye(rank[1]), atol=1e-12)
    np.testing.assert_allclose(core, np.einsum("ijst,sp,tq->ijpq", kernel, u, v), atol=1e-10)


@pytest.mark.parametrize("rank", [(1, 1), (2, 8), (4, 4), (6, 3), (12, 6), (4, 16)])
@pytest.mark.parametrize("seed", [0, 1])
def test_kim_hooi_error_is_at_most_that_of_hosvd(rank, seed):
    kernel = low_rank_kernel(noise=3.0, seed=seed)
    hooi = decompose(kernel, "tucker", rank).error(kernel)
    assert hooi <= TuckerFactors.hosvd(kernel, rank).error(kernel) + 1e-12


def test_kim_hooi_improves_on_hosvd_where_the_modes_interact():
    kernel = np.random.default_rng(2).normal(size=(3, 3, 12, 16))
    hooi = decompose(kernel, "tucker", (3, 3)).error(kernel)
    assert hooi < TuckerFactors.hosvd(kernel, (3, 3)).error(kernel) - 1e-3


@pytest.mark.parametrize("rank", [(2, 3), (4, 4), (5, 10)])
def test_kim_hooi_is_no_worse_than_tensorly(rank):
    kernel = low_rank_kernel(noise=1.0)
    (core, factors), _ = partial_tucker(kernel, rank=rank, modes=[2, 3], n_iter_max=50, tol=1e-9)
    theirs = np.linalg.norm(multi_mode_dot(core, factors, [2, 3]) - kernel) / np.linalg.norm(kernel)
    ours = decompose(kernel, "tucker", rank).error(kernel)
    assert ours <= theirs * (1 + 1e-4)
    assert ours == pytest.approx(theirs, rel=0.02)


def test_kim_hosvd_bases_are_the_singular_vectors_of_the_unfoldings():
    kernel = low_rank_kernel(noise=1.0)
    u, _, v = bases(TuckerFactors.hosvd(kernel, (3, 4)))
    for mode, basis, rank in ((2, u, 3), (3, v, 4)):
        unfolding = np.moveaxis(kernel, mode, 0).reshape(kernel.shape[mode], -1)
        expected = np.linalg.svd(unfolding, full_matrices=False)[0][:, :rank]
        np.testing.assert_allclose(basis @ basis.T, expected @ expected.T, atol=1e-9)


def test_kim_params_and_reconstruction_by_the_definition():
    kernel = np.random.default_rng(3).normal(size=(3, 2, 5, 7))
    factors = decompose(kernel, "tucker", (3, 4))
    assert factors.params() == 5 * 3 + 3 * 2 * 3 * 4 + 4 * 7
    u, core, v = bases(factors)
    expected = multi_mode_dot(core, [u, v], [2, 3])
    np.testing.assert_allclose(factors.reconstruct(), expected, atol=1e-12)


def test_kim_ranks_by_evbmf_on_the_two_unfoldings():
    kernel = low_rank_kernel((3, 3, 24, 32), (4, 7), noise=0.3)
    factors = decompose(kernel, "tucker", "evbmf")
    unfoldings = (np.moveaxis(kernel, mode, 0).reshape(kernel.shape[mode], -1) for mode in (2, 3))
    assert factors.rank == tuple(evbmf(m).rank for m in unfoldings) == (4, 7)


def test_a_zero_kernel_has_zero_factors_and_no_error():
    factors = decompose(np.zeros((3, 3, 4, 4), "float32"), "tucker", 2)
    np.testing.assert_array_equal(factors.reconstruct(), np.zeros((3, 3, 4, 4)))
