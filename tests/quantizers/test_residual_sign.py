"""ResidualSign: HORQ's inputs and Network Sketching's weights."""

import itertools

import numpy as np
import pytest

from keras_compress.quantizers import ResidualSign, Sign
from tests.quantizers.common import normal, values


def residual(w, order, **arguments):
    return w.astype("float64") - values(ResidualSign(order, **arguments), w)


def test_horq_residual_falls_by_the_square_of_each_scale():
    """`||R_i||^2 = ||R_(i-1)||^2 - n beta_i^2`, with `beta_i = mean|R_(i-1)|`."""
    w = normal(1000)
    before = w.astype("float64")
    for order in range(1, 5):
        after = residual(w, order, axis=None)
        expected = np.sum(before**2) - 1000 * np.abs(before).mean() ** 2
        np.testing.assert_allclose(np.sum(after**2), expected, rtol=1e-5)
        assert np.sum(after**2) < np.sum(before**2)
        before = after


def test_horq_residual_of_a_normal_distribution():
    w = normal(400_000)
    assert abs(np.mean(residual(w, 1, axis=None) ** 2) - 0.363) < 0.002
    assert abs(np.mean(residual(w, 2, axis=None) ** 2) - 0.131) < 0.002


def test_horq_of_order_one_is_xnors_form():
    w = normal(30, 7)
    expected = np.where(w >= 0, 1, -1) * np.abs(w).mean()
    np.testing.assert_allclose(values(ResidualSign(1, axis=None), w), expected, rtol=1e-5)
    np.testing.assert_allclose(values(ResidualSign(1), w), values(Sign("mean_abs"), w), rtol=1e-5)


def test_horq_inputs_have_scales_of_their_own_sample():
    x = normal(3, 4, 5) * np.array([0.1, 1, 10]).reshape(3, 1, 1)
    outputs = values(ResidualSign(2, axis=0), x)
    for sample, output in zip(x, outputs, strict=True):
        np.testing.assert_allclose(values(ResidualSign(2, axis=None), sample), output, rtol=1e-5)


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_filter_has_at_most_two_to_the_order_values(order, refine):
    w = normal(200, 4)
    quantizer = ResidualSign(order, refine)
    outputs, levels = values(quantizer, w), quantizer.levels(w)
    assert levels.shape == (4, 2**order)
    for channel in range(4):
        assert set(outputs[:, channel].tolist()) <= set(levels[channel].tolist())
    codes = quantizer.encode(w)
    np.testing.assert_array_equal(codes.decode(), outputs)
    assert codes.ints.max() < 2**order
    assert quantizer.storage_bits((200, 4)) == order * (800 + 32 * 4)


def test_sketching_direct_error_is_below_the_bound_of_the_paper():
    """`||R||^2 <= ||W||^2 (1 - 1/t)^m`."""
    w = normal(25)
    for order in range(1, 7):
        error = np.sum(residual(w, order, axis=None) ** 2)
        assert error <= np.sum(w.astype("float64") ** 2) * (1 - 1 / 25) ** order


def test_sketching_refined_is_the_paper_written_out():
    """Least squares over all sign tensors after each new one, by numpy."""
    w = normal(60, 3)
    for channel, order in itertools.product(range(3), range(1, 5)):
        column = w[:, channel].astype("float64")
        rest, signs = column, []
        for _ in range(order):
            signs.append(np.where(rest >= 0, 1.0, -1.0))
            basis = np.stack(signs, axis=1)
            rest = column - basis @ np.linalg.lstsq(basis, column)[0]
        ours = values(ResidualSign(order, refine=True), w)[:, channel]
        np.testing.assert_allclose(ours, column - rest, atol=1e-5)


def test_sketching_refined_is_no_worse_than_direct_and_equal_at_order_one():
    w = normal(100, 8)
    for order in range(1, 6):
        direct = np.sum(residual(w, order) ** 2, axis=0)
        refined = np.sum(residual(w, order, refine=True) ** 2, axis=0)
        # The refined B_3 follows from another residual, so the comparison holds over filters.
        assert refined.sum() <= direct.sum() * (1 + 1e-6)
        if order == 1:
            np.testing.assert_allclose(refined, direct, rtol=1e-5)


def test_sketching_refined_stays_finite_where_sign_tensors_repeat():
    w = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    np.testing.assert_allclose(values(ResidualSign(4, refine=True), w), w, atol=1e-6)
    np.testing.assert_array_equal(values(ResidualSign(3, refine=True), 0 * w), 0 * w)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`order` must be an integer from 1 to 8"):
        ResidualSign(0)
    with pytest.raises(ValueError, match="`axis` must be one of None, -1, 0"):
        ResidualSign(axis=2)
