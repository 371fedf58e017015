"""SparseGroupLasso: value and proximal operator against numpy and scipy (Liu et al. 2015)."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.optimize import minimize

from keras_compress.regularizers import GroupLasso, SparseGroupLasso

RNG = np.random.default_rng(0)


def closed_form(w, l1, l2):
    """Soft threshold, then group shrink, row by row."""
    w = np.sign(w) * np.maximum(np.abs(w) - l1, 0)
    norms = np.linalg.norm(w, axis=-1, keepdims=True)
    return w * np.maximum(0, 1 - l2 / np.maximum(norms, 1e-30))


def test_liu_value_is_the_sum_of_magnitudes_and_of_norms_of_rows():
    w = RNG.normal(size=(1, 1, 6, 4)).astype("float32")
    expected = 0.2 * np.abs(w).sum() + 0.3 * np.linalg.norm(w[0, 0], axis=1).sum()
    assert float(SparseGroupLasso(0.2, 0.3)(w)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(12, 5), (1, 1, 12, 5)])
def test_liu_proximal_step_is_soft_threshold_then_group_shrink_with_exact_zeros(shape):
    w = RNG.normal(size=shape).astype("float32")
    w[..., :3, :] *= 0.3
    found = ops.convert_to_numpy(SparseGroupLasso(0.5, 0.8).proximal(ops.array(w), 0.7))
    np.testing.assert_allclose(found, closed_form(w, 0.35, 0.56), atol=1e-6)
    rows = found.reshape(12, 5)
    # Whole rows, and single weights in others.
    assert not rows[:3].any() and ((rows == 0).any(1) & rows.any(1)).any()


def test_liu_proximal_step_is_the_minimum():
    w = RNG.normal(size=(3, 2))
    found = ops.convert_to_numpy(SparseGroupLasso(0.3, 0.4).proximal(ops.array(w), 0.9))

    def objective(v):
        v = v.reshape(w.shape)
        penalty = 0.3 * np.abs(v).sum() + 0.4 * np.linalg.norm(v, axis=1).sum()
        return 0.5 * np.sum((v - w) ** 2) + 0.9 * penalty

    best = minimize(objective, w.ravel(), method="Powell", options={"xtol": 1e-8, "ftol": 1e-12})
    assert objective(found.astype("float64").ravel()) <= best.fun + 1e-6


def test_it_is_the_group_lasso_of_weights_and_inputs():
    w = ops.array(RNG.normal(size=(3, 3, 4, 5)).astype("float32"))
    same = GroupLasso(("weight", "channel"), (0.1, 0.2), scale_by_size=False)
    np.testing.assert_array_equal(
        SparseGroupLasso(0.1, 0.2).proximal(w, 0.5), same.proximal(w, 0.5)
    )


def test_config_round_trip():
    penalty = SparseGroupLasso(0.1, 0.2, "filter")
    again = keras.regularizers.get(keras.regularizers.serialize(penalty))
    assert isinstance(again, SparseGroupLasso) and again.get_config() == penalty.get_config()
    w = RNG.normal(size=(4, 3)).astype("float32")
    assert float(again(w)) == float(penalty(w))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"l1": -1}, "SparseGroupLasso: `l1` must be"),
        ({"l2": "strong"}, "`l2` must be a number"),
        ({"group": "weight"}, "`group` must be one of"),
        ({"group": "chanel"}, "Did you mean 'channel'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseGroupLasso(**arguments)
