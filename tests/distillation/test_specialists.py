"""Hinton's specialists: clusters of classes, their data, and how experts are put together."""

import keras
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import rel_entr, softmax

import keras_compress as kc

RNG = np.random.default_rng(0)


def made():
    """Classes {0, 3}, {1, 4} and {2, 5} go together."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(6)])
    model.set_weights([4.0 * np.tile(np.eye(3), 2), np.zeros(6)])
    x = RNG.normal(size=(200, 3)).astype("float32")
    return model, x, kc.distillation.Specialists(model, x, clusters=3)


def test_clusters_of_the_covariance_of_predictions():
    model, x, specialists = made()
    assert sorted(s.tolist() for s in specialists.subsets) == [[0, 3], [1, 4], [2, 5]]
    p = softmax(4.0 * np.tile(x, 2).astype("float64"), -1)
    centred = p - p.mean(0)
    np.testing.assert_allclose(specialists.covariance, centred.T @ centred / 199, atol=1e-6)
    whole = kc.distillation.Specialists(model, x, clusters=1)
    assert [s.tolist() for s in whole.subsets] == [[0, 1, 2, 3, 4, 5]]


def test_labels_and_samples_of_an_expert():
    _, _, specialists = made()
    index = next(i for i, s in enumerate(specialists.subsets) if s.tolist() == [1, 4])
    y = RNG.integers(0, 6, 300)
    labels = specialists.labels(y, index)
    np.testing.assert_array_equal(labels, [{1: 0, 4: 1}.get(c, 2) for c in y])
    rows, shift = specialists.sample(y, index)
    assert len(set(rows)) == len(rows)
    counts = np.bincount(labels[rows], minlength=3)
    assert counts[0] == (y == 1).sum() and counts[1] == (y == 4).sum()
    assert counts[2] == counts[0] + counts[1]
    assert shift == pytest.approx(np.log((labels == 2).sum() / counts[2]))


def test_combined_probabilities_minimise_the_divergences():
    """Equation 5 of the paper, by a general minimiser."""
    _, _, specialists = made()
    p = softmax(RNG.normal(size=(4, 6)), -1)
    experts = [softmax(RNG.normal(size=(4, 3)), -1) for _ in range(3)]
    got = specialists.combine(p, experts, steps=5000)
    np.testing.assert_allclose(got.sum(1), 1)
    for row in range(4):
        (asked,) = (i for i, s in enumerate(specialists.subsets) if p[row].argmax() in s)
        subset, expert = specialists.subsets[asked], experts[asked][row]

        def objective(z, row=row, subset=subset, expert=expert):
            q = softmax(z)
            own = np.append(q[subset], 1 - q[subset].sum())
            return rel_entr(p[row], q).sum() + rel_entr(expert, own).sum()

        best = minimize(objective, np.zeros(6), tol=1e-12)
        np.testing.assert_allclose(got[row], softmax(best.x), atol=1e-4)


def test_bad_input():
    model, x, specialists = made()
    with pytest.raises(ValueError, match="`clusters`.*from 1 to 6"):
        kc.distillation.Specialists(model, x, clusters=7)
    with pytest.raises(ValueError, match="must have the shape"):
        kc.distillation.Specialists(model, x[:, :2], clusters=2)
    with pytest.raises(ValueError, match="`specialist`.*from 0 to 2"):
        specialists.labels([0], 3)
    with pytest.raises(ValueError, match="class indices from 0 to 5"):
        specialists.labels([6], 0)
    with pytest.raises(ValueError, match="of 3 experts"):
        specialists.combine(np.ones((1, 6)) / 6, [])
