"""k-means against scikit-learn's, and against distances to all centres."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from keras_compress.sharing.kmeans import kmeans

RNG = np.random.default_rng(0)


def objective(points, centres, codes):
    return np.sum((points - centres[codes]) ** 2)


@pytest.mark.parametrize("init", ["linear", "density"])
@pytest.mark.parametrize("k", [2, 7, 32])
def test_k_means_of_values_is_lloyds_of_scikit_learn_from_the_same_centres(init, k):
    values = RNG.standard_t(4, size=3000).astype("float32")
    first = {
        "linear": np.linspace(values.min(), values.max(), k),
        "density": np.quantile(values, (np.arange(k) + 0.5) / k),
    }[init]
    if init == "linear" and k == 32:
        # scikit-learn moves empty clusters, which wide ranges leave.
        values = RNG.uniform(-1, 1, size=3000).astype("float32")
        first = np.linspace(values.min(), values.max(), k)
    expected = KMeans(k, init=first[:, None], n_init=1, tol=0).fit(values[:, None])
    (centres,), (codes,) = kmeans(values[None, :, None], k, init)
    np.testing.assert_allclose(centres, expected.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(codes, expected.labels_)


def test_sets_of_vectors_are_clustered_as_well_as_by_scikit_learn():
    points = RNG.normal(size=(5, 400, 3)).astype("float32")
    centres, codes = kmeans(points, 10)
    for each, found, code in zip(points, centres, codes, strict=True):
        best = KMeans(10, n_init=5, random_state=0).fit(each).inertia_
        assert objective(each, found, code) < 1.1 * best


@pytest.mark.parametrize("length,k", [(1, 9), (3, 9), (4, 64)])
def test_every_code_is_the_nearest_centre(length, k):
    points = RNG.normal(size=(3, 500, length)).astype("float32")
    centres, codes = kmeans(points, k, "kmeans++")
    distances = np.square(points[:, :, None] - centres[:, None]).sum(-1)
    chosen = np.take_along_axis(distances, codes[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, distances.min(-1), atol=1e-5)


@pytest.mark.parametrize(
    "length,init", [(1, "linear"), (1, "density"), (1, "kmeans++"), (3, "kmeans++")]
)
def test_gong_lloyd_objective_never_rises(length, init):
    points = RNG.normal(size=(1, 300, length)).astype("float32")
    errors = []
    for rounds in range(12):
        (centres,), (codes,) = kmeans(points, 8, init, max_iter=rounds)
        errors.append(objective(points[0], centres, codes))
    assert errors[-1] < errors[0]
    assert (np.diff(errors) <= 1e-6 * errors[0]).all()


def test_many_distances_are_computed_in_parts(monkeypatch):
    points = RNG.normal(size=(3, 200, 2)).astype("float32")
    whole = kmeans(points, 6)
    monkeypatch.setattr("keras_compress.sharing.kmeans._MAX_DISTANCES", 300)
    for actual, expected in zip(kmeans(points, 6), whole, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("length", [1, 3])
def test_few_distinct_points_are_the_centres(length):
    distinct = RNG.normal(size=(4, length)).astype("float32")
    points = distinct[RNG.integers(0, 4, size=(2, 50))]
    centres, codes = kmeans(points, 6)
    decoded = np.take_along_axis(centres, codes[..., None], 1)
    np.testing.assert_array_equal(decoded, points)


def test_centres_without_values_stay_where_they_are():
    # The middle of the range is empty, and no round gives those centres a value.
    values = np.concatenate([RNG.uniform(0, 0.1, 50), [10.0]])
    (centres,), _ = kmeans(values[None, :, None], 5, "linear")
    spread = np.linspace(values.min(), values.max(), 5)
    np.testing.assert_allclose(centres[1:4, 0], spread[1:4], rtol=1e-6)


def test_seed_decides():
    points = RNG.normal(size=(2, 100, 2))
    first, same, other = (kmeans(points, 5, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0
