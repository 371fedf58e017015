"""TT-matrices against brute force and tensorly."""

import itertools
import math

import numpy as np
import pytest
from keras import ops

from keras_compress.decomposition import tensor_train as tt


def random_cores(input_modes, output_modes, ranks, seed=0):
    rng = np.random.default_rng(seed)
    bonds = (1, *ranks, 1)
    return [
        rng.normal(size=(bonds[k], n, m, bonds[k + 1])).astype("float32")
        for k, (n, m) in enumerate(zip(input_modes, output_modes, strict=True))
    ]


def entry_by_entry(cores):
    """W[(i..), (j..)] as the product of the core slices: the definition."""
    inputs = [range(c.shape[1]) for c in cores]
    outputs = [range(c.shape[2]) for c in cores]
    rows = []
    for i in itertools.product(*inputs):
        row = []
        for j in itertools.product(*outputs):
            product = np.eye(1)
            for core, a, b in zip(cores, i, j, strict=True):
                product = product @ core[:, a, b, :]
            row.append(product[0, 0])
        rows.append(row)
    return np.array(rows)


def test_novikov_reconstruction_equals_the_definition_entry_by_entry():
    cores = random_cores((2, 3, 2), (3, 2, 2), (3, 2))
    np.testing.assert_allclose(tt.tt_to_matrix(cores), entry_by_entry(cores), rtol=1e-4, atol=1e-5)


def test_novikov_reconstruction_equals_tensorly():
    from tensorly.tt_matrix import tt_matrix_to_matrix

    cores = random_cores((4, 3, 5), (2, 6, 3), (5, 4))
    expected = tt_matrix_to_matrix(cores)
    np.testing.assert_allclose(tt.tt_to_matrix(cores), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modes", [((6,), (5,)), ((4, 6), (3, 2)), ((2, 3, 4), (3, 2, 2))])
def test_novikov_tt_svd_at_full_rank_is_exact(modes):
    n, m = modes
    matrix = np.random.default_rng(0).normal(size=(math.prod(n), math.prod(m)))
    cores, _ = tt.tt_svd(matrix, n, m, tt.max_ranks(n, m))
    np.testing.assert_allclose(tt.tt_to_matrix(cores), matrix, atol=2e-6)


@pytest.mark.parametrize("rank", [1, 2, 5, (2, 6, 3)])
def test_novikov_tt_svd_obeys_the_bound_of_its_truncations(rank):
    n, m = (2, 3, 4, 2), (3, 2, 2, 3)
    matrix = np.random.default_rng(1).normal(size=(math.prod(n), math.prod(m)))
    cores, errors = tt.tt_svd(matrix, n, m, rank)
    error = np.linalg.norm(tt.tt_to_matrix(cores) - matrix) / np.linalg.norm(matrix)
    assert error <= math.sqrt(sum(e**2 for e in errors)) + 1e-6
    assert error >= max(errors) - 1e-6


@pytest.mark.parametrize("bound", [0.5, 0.2, 0.05])
def test_novikov_tt_svd_meets_an_error_bound_with_no_larger_ranks_than_needed(bound):
    n, m = (4, 4, 4), (4, 4, 4)
    rng = np.random.default_rng(2)
    matrix = tt.tt_to_matrix(random_cores(n, m, (3, 3))) + 0.1 * rng.normal(size=(64, 64))
    cores, _ = tt.tt_svd(matrix, n, m, bound)
    error = np.linalg.norm(tt.tt_to_matrix(cores) - matrix) / np.linalg.norm(matrix)
    assert error <= bound
    smaller = [max(1, core.shape[-1] - 1) for core in cores[:-1]]
    assert max(smaller) < 16
    worst = tt.tt_svd(matrix, n, m, smaller)[1]
    assert max(worst) > bound / math.sqrt(2) - 1e-6


def test_novikov_tt_svd_recovers_a_matrix_of_low_rank_and_is_no_worse_than_tensorly():
    from tensorly.decomposition import tensor_train_matrix

    n, m, ranks = (4, 3, 4), (3, 4, 2), (4, 3)
    exact = tt.tt_to_matrix(random_cores(n, m, ranks))
    cores, errors = tt.tt_svd(exact, n, m, ranks)
    np.testing.assert_allclose(tt.tt_to_matrix(cores), exact, rtol=1e-3, atol=1e-4)
    assert max(errors) < 1e-6

    matrix = np.random.default_rng(3).normal(size=exact.shape)
    ours = np.linalg.norm(tt.tt_to_matrix(tt.tt_svd(matrix, n, m, ranks)[0]) - matrix)
    theirs = tensor_train_matrix(matrix.reshape(*n, *m), [1, *ranks, 1]).to_matrix()
    assert ours <= np.linalg.norm(theirs - matrix) * (1 + 1e-5)


def test_tt_svd_pads_ranks_that_the_truncated_rest_cannot_fill():
    n = m = (2, 2, 2)
    cores, _ = tt.tt_svd(np.random.default_rng(4).normal(size=(8, 8)), n, m, (1, 4))
    assert [c.shape[-1] for c in cores] == [1, 4, 1]


@pytest.mark.parametrize("seed", range(6))
def test_contraction_order_has_the_fewest_macs_of_all_orders(seed):
    rng = np.random.default_rng(seed)
    d = 4
    n, m = (tuple(int(v) for v in rng.integers(1, 9, d)) for _ in range(2))
    ranks = tuple(int(v) for v in rng.integers(1, 9, d - 1))

    def count(order):
        """Multiply-accumulates counted by contracting arrays of the right shape."""
        cores = random_cores(n, m, ranks)
        tensor, axes, total = np.ones(n), [f"n{k}" for k in range(d)], 0
        for k in order:
            core_axes = [f"r{k}", f"n{k}", f"m{k}", f"r{k + 1}"]
            shared = [a for a in core_axes if a in axes]
            left = [axes.index(a) for a in shared]
            right = [core_axes.index(a) for a in shared]
            total += tensor.size * cores[k].size // math.prod(tensor.shape[i] for i in left)
            tensor = np.tensordot(tensor, cores[k], (left, right))
            axes = [a for a in axes if a not in shared] + [a for a in core_axes if a not in shared]
        return total

    counts = {order: count(order) for order in itertools.permutations(range(d))}
    order, macs = tt.contraction_order(n, m, ranks)
    assert macs == counts[order] == min(counts.values())


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_every_order_of_contraction_gives_the_product_with_the_matrix(order):
    n, m = (2, 3, 2, 3), (3, 2, 3, 2)
    cores = random_cores(n, m, (2, 3, 2))
    x = np.random.default_rng(5).normal(size=(5, math.prod(n))).astype("float32")
    result = tt.tt_matmul(x, [ops.convert_to_tensor(c) for c in cores], n, m, order)
    np.testing.assert_allclose(result, x @ tt.tt_to_matrix(cores), rtol=1e-3, atol=1e-3)


def test_long_chains_never_transpose_more_axes_than_litert_can(monkeypatch):
    n, m = (2,) * 8, (2,) * 8
    cores = random_cores(n, m, (2,) * 7)
    x = np.random.default_rng(6).normal(size=(2, 256)).astype("float32")
    axes = []
    transpose = ops.transpose
    monkeypatch.setattr(
        ops, "transpose", lambda x, p: (axes.append((len(p), x.shape[0])), transpose(x, p))[1]
    )
    order = (3, 0, 7, 5, 1, 6, 2, 4)
    result = tt.tt_matmul(x, [ops.convert_to_tensor(c) for c in cores], n, m, order)
    np.testing.assert_allclose(result, x @ tt.tt_to_matrix(cores), rtol=1e-3, atol=1e-3)
    assert max(count for count, _ in axes) <= 6


@pytest.mark.parametrize("size,count", [(784, 3), (300, 3), (97, 2), (1, 2), (25088, 6)])
def test_split_evenly_multiplies_back(size, count):
    modes = tt.split_evenly(size, count)
    assert len(modes) == count and math.prod(modes) == size


@pytest.mark.parametrize(
    "rank,message",
    [
        (0, "positive integer"),
        (100, "largest useful rank is 16"),
        ((4, 4), "1 integers"),
        ((17,), "larger than the modes allow"),
        (0.5, "error bound"),
    ],
)
def test_ranks_that_cannot_be_are_refused(rank, message):
    with pytest.raises(ValueError, match=message):
        tt.resolve_ranks(rank, (4, 4), (4, 4))
