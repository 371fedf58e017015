"""GroupLasso: value, gradient and proximal operator against numpy (Wen et al. 2016, SSL)."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.regularizers import GroupLasso

SHAPE = (3, 2, 5, 4)


def kernel(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape or SHAPE).astype("float32")


def groups_of(name, w, block=(2, 3)):
    """Index tuples of every group, by loops."""
    if name == "weight":
        return [(index,) for index in np.ndindex(w.shape)]
    every = list(np.ndindex(w.shape))
    if name == "block":
        columns = w.shape[-1]

        def key(index):
            row, column = divmod(int(np.ravel_multi_index(index, w.shape)), columns)
            return row // block[0], column // block[1]

    else:
        key = {
            "filter": lambda i: i[-1],
            "columns": lambda i: i[-1],
            "channel": lambda i: i[-2],
            "rows": lambda i: i[0],
            "shape": lambda i: i[:-1],
            "depth": lambda i: 0,
        }[name]
    found = {}
    for index in every:
        found.setdefault(key(index), []).append(index)
    return list(found.values())


def norms(name, w, scaled=True):
    groups = [np.array([w[i] for i in group], "float64") for group in groups_of(name, w)]
    return [np.linalg.norm(g) * (np.sqrt(len(g)) if scaled else 1) for g in groups]


CASES = [
    ("filter", SHAPE),
    ("channel", SHAPE),
    ("shape", SHAPE),
    ("depth", SHAPE),
    ("weight", SHAPE),
    ("block", SHAPE),
    ("block", (7, 5)),
    ("rows", (6, 4)),
    ("columns", (6, 4)),
]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_ssl_value_is_the_sum_of_group_norms(name, shape, scaled):
    w = kernel(*shape)
    penalty = GroupLasso(name, 0.3, scaled, block_size=(2, 3) if name == "block" else None)
    np.testing.assert_allclose(float(penalty(w)), 0.3 * sum(norms(name, w, scaled)), rtol=1e-5)


def gradient(penalty, w):
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(lambda v: penalty(v))(ops.array(w)))
    import tensorflow as tf

    variable = tf.Variable(w)
    with tf.GradientTape() as tape:
        value = penalty(variable)
    return tape.gradient(value, variable).numpy()


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_ssl_gradient_is_w_over_norm_and_finite_at_zero(name, shape):
    w = kernel(*shape)
    for index in groups_of(name, w)[0]:
        w[index] = 0
    penalty = GroupLasso(name, 1.0, False, block_size=(2, 3) if name == "block" else None)
    want = np.zeros_like(w)
    for group in groups_of(name, w):
        norm = np.linalg.norm([w[i] for i in group])
        for index in group:
            want[index] = w[index] / norm if norm else 0
    np.testing.assert_allclose(gradient(penalty, w), want, atol=1e-5)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_ssl_proximal_step_equals_the_closed_form(name, shape):
    w = kernel(*shape)
    penalty = GroupLasso(name, 2.0, block_size=(2, 3) if name == "block" else None)
    groups = groups_of(name, w)
    lengths = [np.linalg.norm([w[i] for i in g]) / np.sqrt(len(g)) for g in groups]
    step = float(np.median(lengths)) / 2.0
    got = ops.convert_to_numpy(penalty.proximal(ops.array(w), step))
    want = np.zeros_like(w)
    for group in groups:
        norm = np.linalg.norm([w[i] for i in group])
        factor = max(0.0, 1 - step * 2.0 * np.sqrt(len(group)) / norm)
        for index in group:
            want[index] = factor * w[index]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert name == "depth" or 0 < np.mean(got == 0) < 1
    assert not np.signbit(got[got == 0]).any()


@pytest.mark.parametrize(
    "groups", [*sorted({name for name, _ in CASES} - {"rows", "columns"}), ("filter", "channel")]
)
def test_ssl_proximal_step_is_non_expansive(groups):
    penalty = GroupLasso(groups, 0.1, block_size=(2, 3) if groups == "block" else None)
    for seed in range(10):
        a, b = kernel(seed=seed), kernel(seed=seed + 100)
        after = penalty.proximal(ops.array(a), 0.7) - penalty.proximal(ops.array(b), 0.7)
        assert np.linalg.norm(ops.convert_to_numpy(after)) <= np.linalg.norm(a - b) * (1 + 1e-6)


def test_ssl_overlapping_groups_add_up():
    w = kernel()
    penalty = GroupLasso(("weight", "filter", "channel"), (0.1, 0.2, 0.3))
    want = 0.1 * np.abs(w).sum() + 0.2 * sum(norms("filter", w)) + 0.3 * sum(norms("channel", w))
    np.testing.assert_allclose(float(penalty(w)), want, rtol=1e-5)


def test_ssl_sparse_group_lasso_proximal_step_is_the_minimum():
    """Against scipy's minimiser of the definition: ||v - w||^2 / 2 + step * penalty(v)."""
    from scipy.optimize import minimize

    w = kernel(4, 2)
    penalty = GroupLasso(("filter", "weight"), (0.2, 0.3))
    got = ops.convert_to_numpy(penalty.proximal(ops.array(w), 0.9)).astype("float64")

    def objective(v):
        v = v.reshape(w.shape)
        value = 0.3 * np.abs(v).sum() + 0.2 * sum(norms("filter", v))
        return 0.5 * np.sum((v - w) ** 2) + 0.9 * value

    best = min(
        minimize(objective, start, method="Powell", options={"xtol": 1e-8, "ftol": 1e-12}).fun
        for start in (w.ravel(), got.ravel() + 1e-3)
    )
    assert objective(got.ravel()) <= best + 1e-6


def test_config_round_trip():
    penalty = GroupLasso(("block", "depth"), (0.1, 0.2), False, (2, 3))
    again = keras.regularizers.get(keras.regularizers.serialize(penalty))
    assert again.get_config() == penalty.get_config()
    assert float(again(kernel())) == float(penalty(kernel()))


def test_half_precision_weights():
    penalty = GroupLasso("filter", 1e-3)
    w = ops.cast(kernel(), "bfloat16")
    assert keras.backend.standardize_dtype(penalty.proximal(w, 0.1).dtype) == "bfloat16"
    assert np.isfinite(float(penalty(w)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": "filters"}, "'filter'"),
        ({"groups": ()}, "groups"),
        ({"groups": ("filter", "filter")}, "once"),
        ({"strength": -1}, "strength"),
        ({"groups": ("filter", "depth"), "strength": (1, 2, 3)}, "one for each"),
        ({"groups": "block"}, "block_size"),
        ({"block_size": (2, 2)}, "block_size"),
        ({"groups": "block", "block_size": (2, 2, 2)}, "rows, columns"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupLasso(**arguments)


def test_groups_that_a_kernel_does_not_have():
    with pytest.raises(ValueError, match="'channel' and 'filter'"):
        GroupLasso("rows")(kernel())
    with pytest.raises(ValueError, match="2 or more"):
        GroupLasso("filter")(kernel(4))
