"""refit(): Denton's metrics against closed forms and scipy."""

import numpy as np
import pytest

from keras_compress.decomposition import FORMS, decompose
from keras_compress.decomposition.refit import refit

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 2, 6))
MATRIX = KERNEL.reshape(18, 6)
ROWS = RNG.normal(size=(200, 18)) @ RNG.normal(size=(18, 18))
MOMENT = ROWS.T @ ROWS / 200
#: Forms of convolution kernels.
CONVOLUTIONS = [form for form, kind in FORMS.items() if 4 in kind.kernel_ndims]
RANKS = dict.fromkeys(CONVOLUTIONS, 2) | {"bicluster": (2, 3, 1, 1), "tucker": (1, 3), "cp": 5}


def response_error(factors):
    return np.sum((ROWS @ (MATRIX - factors.reconstruct().reshape(18, 6))) ** 2) / 200


def kernel_error(factors, squares):
    return np.sum(squares * (MATRIX - factors.reconstruct().reshape(18, 6)) ** 2)


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_denton_covariance_metric_answers_better_than_the_kernels_own(form):
    start = decompose(KERNEL, form, RANKS[form])
    fitted = refit(start, MOMENT.__matmul__, MOMENT @ MATRIX)
    assert type(fitted) is type(start) and fitted.rank == start.rank
    assert response_error(fitted) < 0.9 * response_error(start)


def test_denton_covariance_metric_in_closed_form():
    values, vectors = np.linalg.eigh(MOMENT)
    root = (vectors * np.sqrt(values)) @ vectors.T
    u, s, vt = np.linalg.svd(root @ MATRIX, full_matrices=False)
    least = np.sum(s[3:] ** 2)
    fitted = refit(decompose(KERNEL, "svd", 3), MOMENT.__matmul__, MOMENT @ MATRIX, 50, 50)
    assert response_error(fitted) == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_denton_gradient_metric_weighs_what_matters(form):
    squares = RNG.gamma(0.5, size=MATRIX.shape)
    start = decompose(KERNEL, form, RANKS[form])
    fitted = refit(start, lambda w: squares * w, squares * MATRIX)
    assert kernel_error(fitted, squares) < kernel_error(start, squares)


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_the_frobenius_norm_gains_nothing_more_of_an_optimum(form):
    start = decompose(KERNEL, form, RANKS[form])
    fitted = refit(start, lambda w: w, MATRIX)
    assert fitted.error(KERNEL) <= start.error(KERNEL) + 1e-12
    if form in ("svd", "spatial", "monochromatic"):
        assert fitted.error(KERNEL) == pytest.approx(start.error(KERNEL), rel=1e-9)
    for before, after in zip(start.arrays, fitted.arrays, strict=True):
        if before.dtype.kind == "i":
            np.testing.assert_array_equal(before, after)
