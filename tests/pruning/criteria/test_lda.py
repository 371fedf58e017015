"""`LDA`: how well maps tell classes apart."""

import keras
import numpy as np
import pytest
import scipy.linalg
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import keras_compress as kc

RNG = np.random.default_rng(0)
LDA = kc.pruning.criteria.LDA


def scores_of(features, labels, **options):
    """Scores of features that a layer hands on as they are."""
    width = features.shape[1]
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(width, name="fc")])
    model.set_weights([np.eye(width), np.zeros(width)])
    return LDA(**options)(model, data=(features.astype("float32"), labels))["fc"]


def mixed(classes=3, width=4, samples=300):
    labels = RNG.integers(0, classes, samples)
    means = RNG.normal(size=(classes, width))
    mixing = RNG.normal(size=(width, width))
    return RNG.normal(size=(samples, width)) @ mixing + means[labels], labels


@pytest.mark.parametrize("scatter", ["diagonal", "full"])
def test_two_class_one_dimensional_score_is_fishers_ratio(scatter):
    x = RNG.normal(size=200)
    y = np.repeat([0, 1], 100)
    x = x + 1.7 * y
    a, b = x[:100], x[100:]
    # With classes of the same size S_b is (difference of the means)^2 / 4, S_w the mean variance.
    ratio = (a.mean() - b.mean()) ** 2 / (a.var() + b.var())
    score = scores_of(x[:, None], y, scatter=scatter)
    np.testing.assert_allclose(score, [ratio / 2], rtol=1e-5)


@pytest.mark.parametrize("scatter", ["diagonal", "full"])
def test_noise_ranks_last_and_a_class_indicator_first(scatter):
    y = np.arange(300) % 3
    weak = RNG.normal(size=300) + 0.8 * (y == 2)
    strong = RNG.normal(size=300) + 3.0 * y
    indicator = (y == 1).astype(float)
    noise = RNG.normal(size=300)
    dead = np.zeros(300)
    features = np.stack([noise, indicator, weak, strong, dead], 1)
    scores = scores_of(features, keras.utils.to_categorical(y), scatter=scatter)
    assert np.argsort(-scores).tolist() == [1, 3, 2, 0, 4]
    assert scores[4] == 0


def test_equals_sklearns_eigenvalues():
    features, labels = mixed()
    oracle = LinearDiscriminantAnalysis(solver="eigen").fit(features, labels)
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    within = np.mean([np.outer(d, d) for d in features - means[labels]], 0)
    between = np.cov(features.T, ddof=0) - within
    values = scipy.linalg.eigh(between, within, eigvals_only=True)[::-1]
    # Two of them are not 0; sklearn gives their shares.
    np.testing.assert_allclose(values[:2] / values.sum(), oracle.explained_variance_ratio_)
    vectors = oracle.scalings_[:, :2]
    expected = np.diag(within) * (np.square(vectors) @ values[:2])
    np.testing.assert_allclose(scores_of(features, labels, scatter="full"), expected, rtol=1e-4)
    # One map at a time is one eigenvalue.
    single = [
        scipy.linalg.eigh(between[i : i + 1, i : i + 1], within[i : i + 1, i : i + 1])[0][0]
        for i in range(4)
    ]
    np.testing.assert_allclose(scores_of(features, labels), single, rtol=1e-4)


def test_scores_do_not_depend_on_the_scale_of_a_map():
    features, labels = mixed()
    scaled = features * [1, 100, 0.01, -3]
    for scatter in ("diagonal", "full"):
        np.testing.assert_allclose(
            scores_of(scaled, labels, scatter=scatter),
            scores_of(features, labels, scatter=scatter),
            rtol=1e-3,
        )


@pytest.mark.parametrize(
    "targets",
    [np.zeros(6), np.linspace(0, 1, 6), np.full((6, 3), 1 / 3), np.zeros((6, 2, 2))],
)
def test_targets_must_be_classes(targets):
    with pytest.raises(ValueError, match="LDA: targets must be class numbers, or one-hot rows"):
        scores_of(RNG.normal(size=(6, 2)), targets)
