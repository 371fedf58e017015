"""CP by non-linear least squares against tensorly, greedy deflation and the definition."""

import numpy as np
import pytest
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac
from tensorly.tenalg import khatri_rao

from keras_compress.decomposition import CPFactors, cp, decompose


def rank_kernel(shape, rank, seed=0, shared=0.0):
    """Kernel of a given CP-rank; `shared` makes the columns of each factor more alike."""
    rng = np.random.default_rng(seed)
    factors = [rng.normal(size=(n, rank)) + shared * rng.normal(size=(n, 1)) for n in shape]
    return cp_to_tensor((None, factors))


def relative(found, kernel):
    return np.linalg.norm(found - kernel) / np.linalg.norm(kernel)


def greedy_deflation(kernel, rank):
    """One best rank-1 term after another, by tensorly's ALS, the best of three starts."""
    rest = kernel
    for _ in range(rank):
        terms = [
            cp_to_tensor(parafac(rest, 1, n_iter_max=200, init="random", random_state=seed))
            for seed in range(3)
        ]
        rest = rest - min(terms, key=lambda term: np.linalg.norm(rest - term))
    return np.linalg.norm(rest) / np.linalg.norm(kernel)


@pytest.mark.parametrize("shared", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_lebedev_rank_3_kernel_is_recovered(seed, shared):
    kernel = rank_kernel((3, 3, 6, 8), 3, seed, shared)
    assert decompose(kernel, "cp", 3).error(kernel) < 1e-4
    assert decompose(kernel.astype("float32"), "cp", 3).error(kernel) < 1e-4


def test_lebedev_large_fits_recover_the_rank_too():
    kernel = rank_kernel((3, 3, 32, 40), 20)
    assert not cp._is_cheap(kernel, 20)
    assert decompose(kernel, "cp", 20).error(kernel) < 1e-4


@pytest.mark.parametrize("rank", [2, 4, 6])
def test_lebedev_nls_error_is_at_most_that_of_greedy_deflation(rank):
    kernel = np.random.default_rng(rank).normal(size=(3, 3, 6, 7))
    assert decompose(kernel, "cp", rank).error(kernel) <= greedy_deflation(kernel, rank) + 1e-9
    exact = rank_kernel((3, 3, 6, 7), rank, shared=1.0)
    assert decompose(exact, "cp", rank).error(exact) < greedy_deflation(exact, rank)


@pytest.mark.parametrize("shape,rank", [((3, 3, 6, 8), 5), ((3, 3, 20, 24), 48)])
def test_lebedev_nls_error_is_at_most_that_of_tensorlys_als(shape, rank):
    kernel = np.random.default_rng(7).normal(size=shape)
    theirs = min(
        relative(cp_to_tensor(parafac(kernel, rank, 60, init="random", random_state=s)), kernel)
        for s in range(3)
    )
    assert decompose(kernel, "cp", rank).error(kernel) <= theirs * (1 + 1e-3)


def test_lebedev_best_rank_1_term_is_one_that_no_als_run_beats():
    kernel = np.random.default_rng(8).normal(size=(3, 3, 5, 6))
    ours = decompose(kernel, "cp", 1).error(kernel)
    for seed in range(10):
        found = parafac(kernel, 1, n_iter_max=500, init="random", random_state=seed, tol=1e-12)
        assert ours <= relative(cp_to_tensor(found), kernel) + 1e-5


def test_lebedev_als_from_the_solution_finds_nothing_more():
    kernel = rank_kernel((3, 3, 8, 9), 4) + np.random.default_rng(9).normal(size=(3, 3, 8, 9))
    factors = decompose(kernel, "cp", 4)
    columns = [np.array(c) for c in factors.columns()]
    further = parafac(kernel, 4, n_iter_max=20, init=(None, columns), tol=0)
    assert relative(cp_to_tensor(further), kernel) > factors.error(kernel) * (1 - 1e-3)


@pytest.mark.parametrize("shape,rank", [((3, 3, 6, 8), 5), ((1, 3, 4, 8), 3), ((3, 3, 24, 24), 40)])
def test_lebedev_the_four_columns_of_each_term_have_equal_norm(shape, rank):
    factors = decompose(np.random.default_rng(10).normal(size=shape), "cp", rank)
    norms = [np.linalg.norm(c, axis=0) for c in factors.columns()]
    for norm in norms[1:]:
        np.testing.assert_allclose(norm, norms[0], rtol=1e-6)


def test_lebedev_params_and_reconstruction_by_the_definition():
    kernel = np.random.default_rng(11).normal(size=(3, 3, 5, 7))
    factors = decompose(kernel, "cp", 2)
    assert factors.params() == 2 * (2 * 3 + 5 + 7)
    a, b, c, d = factors.columns()
    found = factors.reconstruct()
    for i, j, s, t in np.ndindex(kernel.shape):
        expected = np.sum(a[i] * b[j] * c[s] * d[t])
        assert found[i, j, s, t] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 6, 4), (1, 1, 4, 6), (3, 3, 1, 12), (2, 2, 3, 1)])
def test_cp_at_its_largest_useful_rank_is_exact(shape):
    kernel = np.random.default_rng(12).normal(size=shape)
    (limit,) = CPFactors.limits(shape)
    sizes = sorted(shape)
    assert limit == sizes[0] * sizes[1] * sizes[2]
    assert decompose(kernel, "cp", limit).error(kernel) < 1e-4


def test_cp_of_a_1x1_kernel_is_its_truncated_svd():
    kernel = np.random.default_rng(13).normal(size=(1, 1, 8, 6))
    for rank in (1, 3, 5):
        svd = decompose(kernel, "svd", rank).error(kernel)
        assert decompose(kernel, "cp", rank).error(kernel) == pytest.approx(svd, rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_no_unfolding_has_a_higher_rank_than_the_cp_rank(rank):
    kernel = rank_kernel((3, 3, 8, 7), rank, seed=14)
    ranks = [np.linalg.matrix_rank(m) for m in CPFactors.unfoldings(kernel)[0]]
    assert max(ranks) == rank
    assert CPFactors.resolve_rank(1.0, kernel) == (rank,)
    # Every way to split the four axes in two, each once.
    sizes = sorted(min(m.shape) for m in CPFactors.unfoldings(kernel)[0])
    assert sizes == sorted([3, 3, 8, 7, 9, 3 * 7, 3 * 7])


def test_same_kernel_gives_the_same_factors():
    kernel = np.random.default_rng(15).normal(size=(3, 3, 4, 5))
    first, second = (decompose(kernel, "cp", 3).arrays for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_cp_keeps_the_scale_of_the_kernel():
    kernel = rank_kernel((3, 3, 4, 5), 2)
    for scale in (1e-6, 1e6):
        assert decompose(scale * kernel, "cp", 2).error(scale * kernel) < 1e-4


def test_a_zero_kernel_and_a_rank_above_the_kernels_do_no_harm():
    zeros = np.zeros((3, 3, 2, 2))
    np.testing.assert_array_equal(decompose(zeros, "cp", 3).reconstruct(), zeros)
    kernel = rank_kernel((3, 3, 4, 5), 1)
    assert decompose(kernel, "cp", 4).error(kernel) < 1e-4


def test_products_with_khatri_rao_equal_tensorlys():
    rng = np.random.default_rng(16)
    kernel = rng.normal(size=(3, 2, 5, 4))
    factors = [rng.normal(size=(n, 6)) for n in kernel.shape]
    for mode, found in enumerate(cp._mttkrp(kernel, factors)):
        unfolding = np.moveaxis(kernel, mode, 0).reshape(kernel.shape[mode], -1)
        expected = unfolding @ khatri_rao(factors, skip_matrix=mode)
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_steps_solve_the_damped_normal_equations_of_the_explicit_jacobian(monkeypatch):
    monkeypatch.setattr(cp, "_CG_TOLERANCE", 1e-8)
    rng = np.random.default_rng(17)
    kernel = rng.normal(size=(2, 3, 4, 3))
    kernel /= np.linalg.norm(kernel)
    state = cp._State(kernel, [rng.normal(size=(n, 2)) for n in kernel.shape])
    start = np.concatenate(state.factors)

    def model(stacked):
        return cp_to_tensor((None, [stacked[s] for s in state.slices])).ravel()

    columns = []
    for index in np.ndindex(start.shape):
        step = np.zeros_like(start)
        step[index] = 1e-6
        columns.append((model(start + step) - model(start - step)) / 2e-6)
    jacobian = np.array(columns).T
    vector = rng.normal(size=start.shape)
    expected = jacobian.T @ (jacobian @ vector.ravel()) + state.damping * vector.ravel()
    np.testing.assert_allclose(
        state._normal_product(vector, state._pairs()).ravel(), expected, rtol=1e-5
    )

    residual = model(start) - kernel.ravel()
    assert state.squared_error == pytest.approx(residual @ residual)
    normal = jacobian.T @ jacobian + state.damping * np.eye(start.size)
    exact = np.linalg.solve(normal, -jacobian.T @ residual).reshape(start.shape)
    found = state._solve((-jacobian.T @ residual).reshape(start.shape))
    assert relative(found, exact) < 1e-4
