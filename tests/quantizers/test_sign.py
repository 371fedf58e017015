"""Sign: BNN, BinaryConnect and XNOR-Net's weights."""

import itertools

import numpy as np
import pytest
from keras import ops

from keras_compress.quantizers import Sign
from tests.gradients import gradient

RNG = np.random.default_rng(0)


def values(quantizer, w, **kwargs):
    return ops.convert_to_numpy(quantizer(np.asarray(w, "float32"), **kwargs))


def test_bnn_sign_of_zero_is_plus_one():
    np.testing.assert_array_equal(
        values(Sign(), [-2, -1e-30, -0.0, 0, 1e-30, 3]), [-1, -1] + 4 * [1]
    )


def test_bnn_gradient_is_zero_exactly_where_the_input_is_beyond_one():
    a = RNG.uniform(-2, 2, 1000).astype("float32")
    a[:4] = [1, -1, np.nextafter(np.float32(1), 2), -np.nextafter(np.float32(1), 2)]
    upstream = RNG.normal(size=1000).astype("float32")
    grad = gradient(lambda a: ops.sum(Sign()(a) * upstream), a)
    np.testing.assert_array_equal(grad == 0, np.abs(a) > 1)
    np.testing.assert_array_equal(grad[np.abs(a) <= 1], upstream[np.abs(a) <= 1])


def test_binaryconnect_mean_of_stochastic_sign_is_the_weight():
    sign = Sign(stochastic=True, seed=1)
    for w in (0.5, -0.25):
        draws = values(sign, np.full(100_000, w), training=True)
        assert set(np.unique(draws).tolist()) == {-1.0, 1.0}
        assert abs(draws.mean() - w) < 0.01
    np.testing.assert_array_equal(
        values(sign, [-1, 1, -7, 7] * 1000, training=True)[:4], [-1, 1] * 2
    )


def test_binaryconnect_draws_anew_in_training_and_never_at_inference():
    sign, w = Sign(stochastic=True, seed=1), RNG.uniform(-1, 1, 500)
    assert (values(sign, w, training=True) != values(sign, w, training=True)).any()
    for training in (None, False):
        np.testing.assert_array_equal(values(sign, w, training=training), np.where(w < 0, -1, 1))


def test_bwn_scale_of_the_catalogue_example():
    w = np.array([[1.0], [-2.0], [3.0], [-4.0]])
    np.testing.assert_array_equal(values(Sign("mean_abs"), w), [[2.5], [-2.5], [2.5], [-2.5]])


def test_bwn_scale_is_the_best_one_in_l2_for_each_channel():
    w = RNG.normal(size=(3, 3, 4, 5)).astype("float32")
    best = values(Sign("mean_abs"), w)
    assert len(np.unique(np.abs(best))) == 5

    def error(approximation):
        return ((w - approximation) ** 2).sum(axis=(0, 1, 2))

    for factor in (0.99, 1.01):
        assert (error(best) < error(best * factor)).all()
    signs = np.sign(w).reshape(-1, 5)
    fitted = [np.linalg.lstsq(signs[:, [c]], w.reshape(-1, 5)[:, c])[0][0] for c in range(5)]
    np.testing.assert_allclose(Sign("mean_abs").encode(w).scale, fitted, rtol=1e-5)


def test_bwn_signs_are_the_best_of_all():
    for n in (3, 7, 10):
        w = RNG.normal(size=n)
        candidates = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
        # Each candidate gets its own best scale.
        scales = candidates @ w / n
        errors = ((w - scales[:, None] * candidates) ** 2).sum(axis=1)
        ours = values(Sign("mean_abs"), w[:, None])[:, 0]
        assert ((w - ours) ** 2).sum() <= errors.min() + 1e-5


def test_xnor_scaled_gradient_is_the_formula_of_the_paper():
    w = RNG.normal(size=(3, 2, 4, 6)).astype("float32")
    w[0, 0, 0, :4] = [1.0, -1.0, 0.0, 1000.0]
    upstream = RNG.normal(size=w.shape).astype("float32")
    quantizer = Sign("mean_abs", ste="scaled")
    grad = gradient(lambda w: ops.sum(quantizer(w) * upstream), w)
    expected = np.empty_like(w)
    for index in np.ndindex(w.shape):
        filter_weights = w[..., index[-1]]
        alpha = np.abs(filter_weights).sum() / 24
        expected[index] = upstream[index] * (1 / 24 + alpha * (abs(w[index]) <= 1))
    np.testing.assert_allclose(grad, expected, rtol=2e-5)
    assert np.isfinite(values(quantizer, w)).all()
    np.testing.assert_allclose(values(quantizer, w), values(Sign("mean_abs"), w), rtol=0)


def test_plain_gradient_of_the_scaled_sign_holds_the_scale_constant():
    w = RNG.normal(size=(8, 3)).astype("float32")
    upstream = RNG.normal(size=w.shape).astype("float32")
    grad = gradient(lambda w: ops.sum(Sign("mean_abs")(w) * upstream), w)
    np.testing.assert_array_equal(grad, upstream * (np.abs(w) <= 1))


@pytest.mark.parametrize("scale", [None, "mean_abs"])
def test_codes_levels_and_call_agree(scale):
    w = RNG.normal(size=(3, 3, 2, 5)).astype("float32")
    sign = Sign(scale)
    codes = sign.encode(w)
    assert codes.ints.dtype == np.int8 and set(np.unique(codes.ints).tolist()) == {-1, 1}
    np.testing.assert_array_equal(sign.decode(codes), values(sign, w))
    levels = sign.levels(w)
    assert levels.shape == ((1, 2) if scale is None else (5, 2))
    for channel, row in enumerate(np.broadcast_to(levels, (5, 2))):
        np.testing.assert_array_equal(np.unique(values(sign, w)[..., channel]), row)
    again = sign.encode(sign.decode(codes))
    np.testing.assert_array_equal(again.ints, codes.ints)
    np.testing.assert_allclose(again.scale, codes.scale, rtol=1e-6)


def test_storage_is_a_bit_a_weight_and_a_float_a_scale():
    assert Sign().storage_bits((3, 3, 16, 8)) == 3 * 3 * 16 * 8
    assert Sign("mean_abs").storage_bits((3, 3, 16, 8)) == 3 * 3 * 16 * 8 + 32 * 8


def test_half_precision_keeps_the_levels():
    for dtype in ("float16", "bfloat16"):
        outputs = Sign()(ops.cast(np.array([-0.3, 0.3], "float32"), dtype))
        assert outputs.dtype == ops.cast(0, dtype).dtype
        np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(outputs, "float32")), [-1, 1])


def test_bad_arguments_say_what_to_do():
    with pytest.raises(ValueError, match="`scale` must be one of None, 'mean_abs'"):
        Sign(scale="mean")
    with pytest.raises(ValueError, match="Give scale='mean_abs', or use ste='clip'"):
        Sign(ste="scaled")
