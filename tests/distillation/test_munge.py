"""Bucila et al.: synthetic samples, labelled by an ensemble."""

import keras
import numpy as np
import pytest
from scipy.spatial import cKDTree

import keras_compress as kc
from keras_compress.distillation.munge import nearest_neighbours

munge = kc.distillation.munge
X = np.random.default_rng(0).normal(size=(60, 5)) * [1, 10, 0.1, 1, 1]
CODES = np.random.default_rng(1).integers(0, 20, (60, 2))
MIXED = np.concatenate([X[:, :3], CODES], 1)
BIG = 1e12


@pytest.mark.parametrize("columns", [2, 5, 40])
def test_neighbours_equal_those_of_a_tree(columns):
    x = np.random.default_rng(2).normal(size=(80, columns))
    unit = (x - x.min(0)) / np.ptp(x, axis=0)
    want = cKDTree(unit).query(unit, 2)[1][:, 1]
    np.testing.assert_array_equal(nearest_neighbours(x, np.zeros(columns, bool)), want)


def mixed_neighbours():
    """By all pairs: continuous columns in [0, 1], and 1 for each discrete value that differs."""
    unit = (X[:, :3] - X[:, :3].min(0)) / np.ptp(X[:, :3], axis=0)
    distances = np.square(unit[:, None] - unit).sum(-1) + (CODES[:, None] != CODES).sum(-1)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(1)


def test_discrete_columns_count_as_equal_or_not():
    discrete = np.array([False, False, False, True, True])
    np.testing.assert_array_equal(nearest_neighbours(MIXED, discrete), mixed_neighbours())


def test_all_swaps_equal_a_loop_over_the_samples():
    want = MIXED.copy()
    for sample, other in enumerate(mixed_neighbours()):
        want[[sample, other]] = want[[other, sample]]
    got = munge(MIXED, 2, 1.0, BIG, discrete=[3, 4])
    np.testing.assert_allclose(got, np.concatenate([want, want]), atol=1e-9)


def test_output_has_k_times_the_rows_and_without_swaps_is_the_data():
    for x in (X, X.astype("float32"), CODES, X.reshape(60, 5, 1)):
        got = munge(x, 3, 0.0)
        assert got.dtype == x.dtype and got.shape == (180, *x.shape[1:])
        np.testing.assert_array_equal(got, np.concatenate([x] * 3))


def test_discrete_marginals_are_those_of_the_data():
    got = munge(MIXED, 4, 0.5, seed=0, discrete=[False, False, False, True, True])
    for one in np.split(got, 4):
        np.testing.assert_array_equal(np.sort(one[:, 3:], 0), np.sort(CODES, 0))
        assert (one[:, 3:] != CODES).any()
    assert np.isin(munge(CODES, 2, 0.5, seed=0), CODES).all()


def test_draws_of_one_pair_follow_the_formula():
    """Two samples meet twice; with probability p a value is redrawn, at each meeting."""
    x = np.array([[0.0], [1.0]])
    got = munge(x, 40000, 0.3, BIG, seed=0).reshape(-1, 2)
    # Swapped once of the two times: the values have changed places.
    assert (got[:, 0] > 0.5).mean() == pytest.approx(2 * 0.3 * 0.7, abs=0.01)
    got = munge(x, 40000, 1.0, 4.0, seed=0).reshape(-1, 2)
    # After the first meeting the distance is d = 1 + N(0, 2 / 16), so that E d^2 = 1 + 1/8, and the
    # second adds a variance of E d^2 / 16 to the first one's 1 / 16.
    assert got.mean(0) == pytest.approx([0, 1], abs=0.01)
    assert got.var(0) == pytest.approx(1 / 16 + (1 + 1 / 8) / 16, rel=0.05)


def test_means_of_continuous_columns_stay():
    got = munge(X, 400, 0.5, 1.0, seed=0)
    error = 5 * got.std(0) / np.sqrt(len(got))
    assert (np.abs(got.mean(0) - X.mean(0)) < error).all()


def test_sets_differ_and_a_seed_repeats_them():
    got = munge(X, 2, 0.5, seed=3)
    assert (got[:60] != got[60:]).any()
    np.testing.assert_array_equal(got, munge(X, 2, 0.5, seed=3))
    integers = munge(CODES, 2, 0.5, seed=3, discrete=[0])
    assert integers.dtype == "float32" and np.isin(integers[:, 0], CODES[:, 0]).all()


def test_student_learns_the_mean_of_an_ensemble_on_synthetic_samples():
    """Linear nets: on synthetic samples alone the student becomes the mean of the two."""

    def net(name):
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name=name)

    members, student = [net("a"), net("b")], net("student")
    x = np.random.default_rng(4).normal(size=(32, 4)).astype("float32")
    synthetic = munge(x, 8, 0.5, 1.0, seed=0)
    loss = kc.distillation.LogitRegression(normalize=False)
    distiller = kc.distillation.Distiller(members, student, loss, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.3))
    distiller.fit(synthetic, epochs=20, batch_size=64, verbose=0)
    for got, one, two in zip(*(model.get_weights() for model in (student, *members)), strict=True):
        np.testing.assert_allclose(got, (one + two) / 2, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[:1], {}, "at least 2 samples"),
        (X[:, 0], {}, "at least 2 samples"),
        (X.astype(str), {}, "Code categories as integers"),
        (np.full((3, 2), np.nan), {}, "NaN or infinite"),
        (X, {"discrete": [5]}, r"columns \[5\] of 5"),
        (X, {"discrete": [True]}, "booleans of a sample's shape"),
        (X, {"discrete": [0.5]}, "indices of the columns"),
        (X, {"size_multiplier": 0}, "`size_multiplier`"),
        (X, {"swap_probability": 1.1}, "`swap_probability`"),
        (X, {"local_variance": 0}, "`local_variance`"),
    ],
)
def test_bad_input(x, options, message):
    with pytest.raises(ValueError, match=message):
        munge(x, **options)
