"""Zhang 2015 and 2016: reduced-rank regressions, and those through ReLU."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from keras_compress.decomposition import decompose
from keras_compress.decomposition.response_regression import (
    ChannelRegression,
    FactorsRegression,
    auxiliary_responses,
    reduced_rank_map,
    relu_error,
    relu_regression,
)

RNG = np.random.default_rng(0)
SAMPLES, OUTPUTS = 300, 6
CENTRED = RNG.normal(size=(SAMPLES, OUTPUTS)) @ RNG.normal(size=(OUTPUTS, OUTPUTS))
CENTRED -= CENTRED.mean(0)
OTHER = CENTRED + 0.5 * RNG.normal(size=CENTRED.shape)
OTHER -= OTHER.mean(0)


@pytest.mark.parametrize("rank", range(1, OUTPUTS + 1))
def test_zhang_identity_gives_the_principal_components_and_the_dropped_eigenvalues(rank):
    left, right = reduced_rank_map(CENTRED, CENTRED, rank)
    values, vectors = np.linalg.eigh(CENTRED.T @ CENTRED / SAMPLES)
    basis = vectors[:, ::-1][:, :rank]
    np.testing.assert_allclose(left @ right, basis @ basis.T, atol=1e-6)
    residual = np.sum((CENTRED - CENTRED @ left @ right) ** 2)
    assert residual == pytest.approx(SAMPLES * np.sum(values[: OUTPUTS - rank]), abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_zhang_asymmetric_map_is_the_generalised_svd(rank):
    values, vectors = np.linalg.eigh(OTHER.T @ OTHER)
    root = (vectors * np.sqrt(values)) @ vectors.T
    whole = CENTRED.T @ OTHER @ np.linalg.inv(OTHER.T @ OTHER)
    u, s, vt = np.linalg.svd(whole @ root)
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank] @ np.linalg.inv(root)
    left, right = reduced_rank_map(OTHER, CENTRED, rank)
    np.testing.assert_allclose((left @ right).T, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_zhang_no_other_map_of_the_rank_fits_better(seed):
    rng = np.random.default_rng(seed)
    left, right = reduced_rank_map(OTHER, CENTRED, 2)
    least = np.sum((CENTRED - OTHER @ left @ right) ** 2)
    q = rng.normal(size=(2, OUTPUTS))
    for _ in range(300):
        p = np.linalg.lstsq(OTHER, CENTRED @ np.linalg.pinv(q), rcond=None)[0]
        q = np.linalg.lstsq(OTHER @ p, CENTRED, rcond=None)[0]
    assert least <= np.sum((CENTRED - OTHER @ p @ q) ** 2) * (1 + 1e-9)
    near = left + 1e-3 * rng.normal(size=left.shape), right + 1e-3 * rng.normal(size=right.shape)
    assert least <= np.sum((CENTRED - OTHER @ near[0] @ near[1]) ** 2)


def test_directions_that_samples_do_not_show_are_left_as_they_are():
    shown = CENTRED.copy()
    shown[:, 4:] = 0.0
    left, right = reduced_rank_map(shown, shown, OUTPUTS)
    np.testing.assert_allclose(left @ right, np.eye(OUTPUTS), atol=1e-6)


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_zhang_auxiliary_responses_are_the_minimum_of_each_entry(penalty):
    predictions, targets = RNG.normal(size=40), RNG.normal(size=40)
    found = auxiliary_responses(predictions, targets, penalty)

    def cost(z, p, y):
        return (max(y, 0.0) - max(z, 0.0)) ** 2 + penalty * (z - p) ** 2

    for z, p, y in zip(found, predictions, targets, strict=True):
        grid = np.linspace(-4, 4, 4001)
        start = grid[np.argmin([cost(g, p, y) for g in grid])]
        best = minimize_scalar(
            cost, bounds=(start - 0.01, start + 0.01), args=(p, y), method="bounded"
        )
        assert cost(z, p, y) <= best.fun + 1e-6


def regressions():
    kernel = RNG.normal(size=(3, 3, 2, OUTPUTS))
    rows = RNG.normal(size=(SAMPLES, 18))
    targets = rows @ kernel.reshape(18, OUTPUTS) + RNG.normal(size=OUTPUTS)
    noisy = rows + 0.3 * RNG.normal(size=rows.shape)
    yield ChannelRegression(noisy @ kernel.reshape(18, OUTPUTS), 2), targets
    yield FactorsRegression(noisy, decompose(kernel, "spatial", 3)), targets


@pytest.mark.parametrize("which", [0, 1], ids=["channel", "spatial"])
def test_zhang_relaxed_objective_never_rises_in_any_half_step(which):
    regression, targets = list(regressions())[which]
    wanted = np.maximum(targets, 0.0)
    predictions = regression.fit(targets)
    for penalty in (0.01, 1.0):

        def relaxed(z, predictions, penalty=penalty):
            return np.sum((wanted - np.maximum(z, 0)) ** 2) + penalty * np.sum(
                (z - predictions) ** 2
            )

        before = np.inf
        for _ in range(10):
            z = auxiliary_responses(predictions, targets, penalty)
            between = relaxed(z, predictions)
            predictions = regression.fit(z)
            after = relaxed(z, predictions)
            assert after <= between * (1 + 1e-9) and between <= before * (1 + 1e-9)
            before = after


@pytest.mark.parametrize("which", [0, 1], ids=["channel", "spatial"])
def test_zhang_relu_refinement_is_below_the_linear_start(which):
    regression, targets = list(regressions())[which]
    linear = relu_error(regression.fit(targets), targets)
    _, error = relu_regression(regression, targets)
    assert error < 0.95 * linear


def test_relu_error_of_a_solution_is_what_is_reported():
    inputs, targets = OTHER + 1.0, CENTRED + 0.5
    (left, right, bias), error = relu_regression(ChannelRegression(inputs, 2), targets)
    outputs = np.maximum(inputs @ left @ right + bias, 0)
    assert np.sum((outputs - np.maximum(targets, 0)) ** 2) == pytest.approx(error, rel=1e-9)


def test_full_rank_from_the_same_inputs_has_no_error():
    _, error = relu_regression(ChannelRegression(CENTRED + 1.0, OUTPUTS), CENTRED + 1.0)
    assert error < 1e-8
