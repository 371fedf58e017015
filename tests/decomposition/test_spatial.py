"""Jaderberg's scheme 2 in Tai's closed form, against numpy's SVD and alternating least squares."""

import numpy as np
import pytest

from keras_compress.decomposition import decompose

SHAPES = [(3, 3, 4, 6), (5, 3, 2, 7), (1, 3, 6, 4), (1, 1, 5, 3), (3, 3, 1, 8)]


def kernel_and_matrix(shape, seed=0):
    """A kernel and its unfolding `W[(i, s), (j, t)]`, entry by entry."""
    height, width, inputs, outputs = shape
    kernel = np.random.default_rng(seed).normal(size=shape)
    matrix = np.empty((height * inputs, width * outputs))
    for i, j, s, t in np.ndindex(shape):
        matrix[i * inputs + s, j * outputs + t] = kernel[i, j, s, t]
    return kernel, matrix


@pytest.mark.parametrize("shape", SHAPES)
def test_tai_error_is_the_sum_of_the_dropped_squared_singular_values(shape):
    kernel, matrix = kernel_and_matrix(shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, len(values) + 1):
        squared = np.sum((decompose(kernel, "spatial", rank).reconstruct() - kernel) ** 2)
        assert squared == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-6, abs=1e-18)


@pytest.mark.parametrize("seed", range(5))
def test_tai_no_alternating_least_squares_run_finds_a_lower_error(seed):
    kernel, matrix = kernel_and_matrix((3, 3, 4, 6))
    rank = 5
    right = np.random.default_rng(seed).normal(size=(rank, matrix.shape[1]))
    for _ in range(200):
        left = np.linalg.lstsq(right.T, matrix.T, rcond=None)[0].T
        right = np.linalg.lstsq(left, matrix, rcond=None)[0]
    alternating = np.linalg.norm(left @ right - matrix) / np.linalg.norm(matrix)
    closed = decompose(kernel, "spatial", rank).error(kernel)
    assert closed <= alternating + 1e-12
    assert closed == pytest.approx(alternating, rel=0.05)


def test_tai_vertical_and_horizontal_filters_have_equal_norm():
    kernel, matrix = kernel_and_matrix((5, 3, 4, 6), seed=1)
    vertical, horizontal = decompose(kernel, "spatial", 7).arrays
    values = np.linalg.svd(matrix, compute_uv=False)[:7]
    np.testing.assert_allclose(np.sum(vertical**2, axis=(0, 1, 2)), values, rtol=1e-9)
    np.testing.assert_allclose(np.sum(horizontal**2, axis=(0, 1, 3)), values, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_jaderberg_scheme_2_is_exact_at_the_smaller_of_the_two_sides(shape):
    height, width, inputs, outputs = shape
    kernel, _ = kernel_and_matrix(shape, seed=2)
    factors = decompose(kernel, "spatial", min(height * inputs, width * outputs))
    assert factors.error(kernel) < 1e-12


def test_jaderberg_scheme_2_params():
    kernel, _ = kernel_and_matrix((3, 3, 4, 6))
    assert decompose(kernel, "spatial", 5).params() == 5 * 3 * (4 + 6)


def test_jaderberg_scheme_2_kernel_is_the_sum_over_the_middle_channels():
    kernel, _ = kernel_and_matrix((3, 5, 2, 4), seed=3)
    factors = decompose(kernel, "spatial", 3)
    vertical, horizontal = factors.arrays
    assert vertical.shape == (3, 1, 2, 3) and horizontal.shape == (1, 5, 3, 4)
    found = factors.reconstruct()
    for i, j, s, t in np.ndindex(kernel.shape):
        expected = sum(vertical[i, 0, s, k] * horizontal[0, j, k, t] for k in range(3))
        assert found[i, j, s, t] == pytest.approx(expected, abs=1e-12)
