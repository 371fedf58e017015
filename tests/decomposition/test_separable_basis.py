"""Jaderberg's scheme 1 against explicit sums, singular values and tensorly."""

import numpy as np
import pytest
from tensorly.decomposition import parafac

from keras_compress.decomposition import decompose


def kernel_of(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_jaderberg_scheme_1_kernel_is_the_sum_over_the_filters_of_each_channel():
    kernel = kernel_of((3, 4, 2, 5))
    factors = decompose(kernel, "separable_basis", 3)
    v, h, a = factors.arrays
    assert v.shape == (3, 1, 2, 3) and h.shape == (1, 4, 6, 1) and a.shape == (1, 1, 6, 5)
    found = factors.reconstruct()
    for i, j, s, t in np.ndindex(kernel.shape):
        filters = range(3 * s, 3 * s + 3)
        expected = sum(v[i, 0, s, m - 3 * s] * h[0, j, m, 0] * a[0, 0, m, t] for m in filters)
        assert found[i, j, s, t] == pytest.approx(expected, abs=1e-12)


def test_jaderberg_scheme_1_params():
    factors = decompose(kernel_of((3, 3, 4, 6)), "separable_basis", 2)
    assert factors.params() == 4 * 2 * 2 * 3 + 4 * 2 * 6


@pytest.mark.parametrize("shape", [(3, 3, 4, 16), (1, 3, 2, 5), (3, 3, 1, 2), (1, 1, 3, 4)])
def test_jaderberg_scheme_1_is_exact_at_its_largest_rank(shape):
    kernel = kernel_of(shape)
    height, width, _, outputs = shape
    rank = min(height * width, height * outputs, width * outputs)
    assert decompose(kernel, "separable_basis", rank).error(kernel) < 1e-5


def test_jaderberg_scheme_1_recovers_a_kernel_of_two_filters_a_channel():
    rng = np.random.default_rng(1)
    v, h, a = (rng.normal(size=(n, 3, 2)) for n in (3, 3, 8))
    kernel = np.einsum("ism,jsm,tsm->ijst", v, h, a)
    assert decompose(kernel, "separable_basis", 2).error(kernel) < 5e-3


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_jaderberg_scheme_1_fits_no_worse_than_tensorly_channel_by_channel(rank):
    kernel = kernel_of((3, 3, 3, 6), seed=2)
    squared = 0.0
    for s in range(3):
        _, (a, b, c) = parafac(kernel[:, :, s], rank, n_iter_max=300, init="svd", tol=1e-9)
        squared += np.sum((np.einsum("ir,jr,tr->ijt", a, b, c) - kernel[:, :, s]) ** 2)
    reference = np.sqrt(squared / np.sum(kernel**2))
    assert decompose(kernel, "separable_basis", rank).error(kernel) <= 1.01 * reference
