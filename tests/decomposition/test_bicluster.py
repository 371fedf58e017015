"""Denton's biclusters against Tucker factors of explicit blocks."""

import numpy as np
import pytest
from tensorly.decomposition import partial_tucker

from keras_compress.decomposition import decompose

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 6))


def test_denton_with_one_group_of_each_is_plain_tucker():
    factors = decompose(KERNEL, "bicluster", (1, 1, 2, 3))
    np.testing.assert_allclose(
        factors.reconstruct(), decompose(KERNEL, "tucker", (2, 3)).reconstruct(), atol=1e-10
    )


@pytest.mark.parametrize("rank", [(1, 1, 4, 6), (2, 3, 2, 2), (4, 2, 1, 3), (2, 6, 2, 1)])
def test_denton_full_ranks_reproduce_the_kernel(rank):
    assert decompose(KERNEL, "bicluster", rank).error(KERNEL) < 1e-5


def test_denton_groups_of_like_channels_are_found_whatever_their_order():
    rng = np.random.default_rng(1)
    blocks = 5.0 * rng.normal(size=(3, 3, 2, 3))
    rows = rng.permutation(np.repeat([0, 1], 4))
    columns = rng.permutation(np.repeat([0, 1, 2], 3))
    kernel = blocks[:, :, rows][..., columns] + 0.1 * rng.normal(size=(3, 3, 8, 9))
    factors = decompose(kernel, "bicluster", (2, 3, 1, 1))
    found = factors.reconstruct()
    # Each block by itself, by tensorly.
    expected = np.empty_like(kernel)
    for g, h in np.ndindex(2, 3):
        at = np.ix_(range(3), range(3), np.flatnonzero(rows == g), np.flatnonzero(columns == h))
        (core, (u, v)), _ = partial_tucker(kernel[at], [1, 1], modes=[2, 3], n_iter_max=200)
        expected[at] = np.einsum("ijpq,sp,tq->ijst", core, u, v)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_denton_params_are_those_of_the_blocks():
    factors = decompose(KERNEL, "bicluster", (2, 3, 2, 1))
    block = 2 * 2 + 9 * 2 * 1 + 1 * 2
    orders = 4 + 2 * 3 * 1 + 6
    assert factors.params() == 2 * 3 * block + orders
    assert factors.rank == (2, 3, 2, 1)


@pytest.mark.parametrize(
    "rank,message",
    [
        ((3, 3, 1, 1), r"rank\[0\]=3 must divide the 4 input channels"),
        ((2, 4, 1, 1), r"rank\[1\]=4 the 6 filters"),
        ((2, 3, 3, 1), r"rank\[2:\]=\(3, 1\), are larger than it allows: \(2.*, 2\)"),
        ("evbmf", "takes `rank` as four integers"),
    ],
)
def test_bad_ranks_are_refused(rank, message):
    with pytest.raises(ValueError, match=message):
        decompose(KERNEL, "bicluster", rank)
