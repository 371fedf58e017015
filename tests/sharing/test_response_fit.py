"""Q-CNN's error correction (Wu et al. 2016), against samples and brute force."""

import numpy as np
import pytest

from keras_compress.sharing import Codebook, fit_codebook
from keras_compress.sharing.response_fit import ResponseFit

RNG = np.random.default_rng(0)

SHAPES = {"dense": (12, 60), "convolution": (2, 2, 6, 40)}


def problem(shape, length=3, k=6, noise=0.3):
    """A kernel, inputs that correlate, inputs as the quantised layers give them, a start."""
    kernel = RNG.normal(size=shape)
    count = kernel[..., 0].size
    inputs = RNG.normal(size=(200, count)) @ RNG.normal(size=(count, count))
    given = inputs + noise * RNG.normal(size=inputs.shape)
    outputs = inputs @ kernel.reshape(count, -1)
    return kernel, given, outputs, fit_codebook(kernel, "pq", segment=length, k=k)


def fit_of(book, given, outputs):
    return ResponseFit(book, given.T @ given, given.T @ outputs, np.sum(outputs**2))


def error_of(book, given, outputs):
    """The response error on the samples themselves."""
    kernel = book.decode().astype("float64").reshape(given.shape[1], -1)
    return np.sum((outputs - given @ kernel) ** 2)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_wu_response_error_never_rises_per_block_update_and_ends_below_plain_pq(shape):
    _, given, outputs, book = problem(shape)
    fit = fit_of(book, given, outputs)
    errors = [error_of(book, given, outputs)]
    assert fit.error == pytest.approx(errors[0], rel=1e-6)
    for _ in range(3):
        for segment in range(book.centres.shape[1]):
            fit.update(segment)
            errors.append(error_of(fit.codebook(), given, outputs))
            assert fit.error == pytest.approx(errors[-1], rel=1e-4)
    assert (np.diff(errors) <= 1e-6 * errors[0]).all()
    assert errors[-1] < 0.8 * errors[0]
    ran = fit_of(book, given, outputs).run().codebook()
    assert error_of(ran, given, outputs) < 0.8 * errors[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_wu_codes_are_an_exhaustive_search_with_the_rest_fixed(shape):
    _, given, outputs, book = problem(shape)
    fit = fit_of(book, given, outputs)
    fit.update(1)
    after = fit.codebook()
    # The last kernel position was searched with all others as they are now.
    last = tuple(length - 1 for length in shape[:-2])
    before = error_of(after, given, outputs)
    for output in range(0, shape[-1], 7):
        for code in range(after.k):
            codes = after.codes.copy()
            codes[(0, *last, 1, output)] = code
            tried = error_of(Codebook(codes, after.centres), given, outputs)
            assert tried >= before * (1 - 1e-6)


def test_wu_centres_are_the_least_squares_fit_of_the_outputs_that_use_them():
    _, given, outputs, book = problem((6, 30), length=3, k=4)
    fit = fit_of(book, given, outputs)
    for segment in range(2):
        fit.update(segment)
    # From codes that no update changes any more, centres are a linear regression.
    for _ in range(100):
        codes = fit.codebook().codes
        fit.update(1)
    found = fit.codebook()
    np.testing.assert_array_equal(found.codes, codes)
    other = found.decode().astype("float64")
    other[3:] = 0
    left = outputs - given @ other
    for code in np.unique(found.codes[0, 1]):
        users = found.codes[0, 1] == code
        expected = np.linalg.lstsq(given[:, 3:], left[:, users].mean(axis=1), rcond=None)[0]
        np.testing.assert_allclose(found.centres[0, 1, code], expected, atol=1e-4)


def test_wu_centres_of_a_convolution_are_at_the_minimum_of_the_error():
    _, given, outputs, book = problem((2, 1, 3, 20), length=3, k=3)
    fit = fit_of(book, given, outputs)
    for _ in range(200):
        fit.update(0)
    found = fit.codebook()
    # All centres together: one regression of the outputs on the sums of inputs that each meets.
    design = np.zeros((*outputs.shape, 3, 3))
    parts = given.reshape(len(given), 2, 3)
    for position in range(2):
        for output in range(20):
            design[:, output, found.codes[0, position, 0, 0, output]] += parts[:, position]
    solution = np.linalg.lstsq(design.reshape(-1, 9), outputs.ravel(), rcond=None)[0]
    best = np.sum((outputs.ravel() - design.reshape(-1, 9) @ solution) ** 2)
    assert error_of(found, given, outputs) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_wu_as_many_centres_as_distinct_subvectors_give_zero_error(shape):
    segments = RNG.normal(size=(4, shape[-2] // 3, 3))
    codes = RNG.integers(0, 4, size=(1, *shape[:-2], shape[-2] // 3, shape[-1]))
    kernel = Codebook(codes, np.swapaxes(segments, 0, 1)[None]).decode()
    inputs = RNG.normal(size=(100, kernel[..., 0].size))
    outputs = inputs @ kernel.reshape(inputs.shape[1], -1)
    book = fit_codebook(kernel, "pq", segment=3, k=4)
    fit = fit_of(book, inputs, outputs).run()
    assert error_of(fit.codebook(), inputs, outputs) <= 1e-10 * np.sum(outputs**2)


def test_inputs_that_are_always_zero_or_depend_on_others_do_no_harm():
    _, given, outputs, book = problem((12, 60))
    given[:, 3:6] = 0
    given[:, 7] = given[:, 6]
    fit = fit_of(book, given, outputs)
    before = fit.error
    found = fit.run().codebook()
    assert np.isfinite(found.centres).all()
    assert error_of(found, given, outputs) < before


def test_other_codebooks_and_shapes_are_refused():
    kernel, given, outputs, book = problem((12, 60))
    with pytest.raises(ValueError, match="product quantisation"):
        fit_of(fit_codebook(kernel, "rq", segment=3), given, outputs)
    with pytest.raises(ValueError, match=r"`gram` must have the shape \(12, 12\)"):
        fit_of(book, given[:, :6], outputs)
