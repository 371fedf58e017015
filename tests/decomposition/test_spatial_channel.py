"""The 3-d form of Zhang 2016: spatial on the filters of the channel form."""

import numpy as np
import pytest

from keras_compress.decomposition import decompose

KERNEL = np.random.default_rng(0).normal(size=(3, 5, 4, 6))


def test_zhang_3d_is_spatial_of_the_filters_of_channel():
    factors = decompose(KERNEL, "spatial_channel", (7, 4))
    u, s, vt = np.linalg.svd(KERNEL.reshape(-1, 6), full_matrices=False)
    filters = (u[:, :4] * np.sqrt(s[:4])).reshape(3, 5, 4, 4)
    unfolded = filters.transpose(0, 2, 1, 3).reshape(12, 20)
    p, d, qt = np.linalg.svd(unfolded, full_matrices=False)
    low = ((p[:, :7] * d[:7]) @ qt[:7]).reshape(3, 4, 5, 4).transpose(0, 2, 1, 3)
    expected = low @ (np.sqrt(s[:4])[:, None] * vt[:4])
    np.testing.assert_allclose(factors.reconstruct(), expected, atol=1e-10)


def test_zhang_3d_is_exact_at_full_ranks():
    assert decompose(KERNEL, "spatial_channel", (12, 6)).error(KERNEL) < 1e-12


def test_zhang_3d_params():
    assert decompose(KERNEL, "spatial_channel", (5, 4)).params() == 3 * 4 * 5 + 5 * 5 * 4 + 4 * 6


@pytest.mark.parametrize("rank", [(12, 1), (12, 2)])
def test_ranks_that_the_filters_cannot_fill_are_cut(rank):
    factors = decompose(KERNEL, "spatial_channel", rank)
    assert factors.rank == (min(12, 5 * rank[1]), rank[1])
    assert factors.error(KERNEL) == pytest.approx(decompose(KERNEL, "svd", rank[1]).error(KERNEL))
