"""Denton's monochromatic form against per-filter SVDs and brute force."""

import itertools

import numpy as np
import pytest

from keras_compress.decomposition import decompose


def kernel_of(shape=(3, 3, 3, 6), seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_denton_with_a_colour_for_each_filter_is_the_rank_1_truncation_of_each():
    kernel = kernel_of()
    found = decompose(kernel, "monochromatic", 6).reconstruct()
    for t in range(6):
        matrix = kernel[..., t].reshape(9, 3)
        u, s, vt = np.linalg.svd(matrix)
        expected = s[0] * np.outer(u[:, 0], vt[0])
        np.testing.assert_allclose(found[..., t].reshape(9, 3), expected, atol=1e-10)


def test_denton_filters_that_share_a_colour_are_found_whatever_their_order():
    rng = np.random.default_rng(1)
    colors, spatial = rng.normal(size=(3, 4)), rng.normal(size=(3, 3, 12))
    of_filter = rng.permutation(np.repeat(np.arange(4), 3))
    kernel = np.einsum("st,ijt->ijst", colors[:, of_filter], spatial)
    factors = decompose(kernel, "monochromatic", 4)
    assert factors.error(kernel) < 1e-10
    assert factors.params() == 3 * 4 + 9 * 12 + 12


@pytest.mark.parametrize("seed", range(3))
def test_denton_clusters_are_the_best_of_all_of_equal_size(seed):
    kernel = kernel_of(seed=seed)
    filters = kernel.reshape(9, 3, 6)
    kept = [
        sum(
            np.linalg.eigvalsh(sum(filters[..., t].T @ filters[..., t] for t in part))[-1]
            for part in (first, set(range(6)) - set(first))
        )
        for first in itertools.combinations(range(6), 3)
    ]
    least = np.sqrt(1 - max(kept) / np.sum(kernel**2))
    assert decompose(kernel, "monochromatic", 2).error(kernel) == pytest.approx(least, rel=1e-9)


def test_ranks_that_are_no_number_of_equal_clusters_are_refused():
    with pytest.raises(ValueError, match="rank=4 must divide the 6 filters"):
        decompose(kernel_of(), "monochromatic", 4)
    with pytest.raises(ValueError, match="give `rank` as an integer that divides the 6 filters"):
        decompose(kernel_of(), "monochromatic", 0.5)
