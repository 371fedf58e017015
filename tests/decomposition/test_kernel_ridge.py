"""Denil's prediction of weights, against kernel ridge regression written out in numpy."""

import keras
import numpy as np
import pytest
import scipy.spatial.distance
from keras import ops
from sklearn.kernel_ridge import KernelRidge

import keras_compress as kc
from keras_compress.decomposition import FORMS, decompose, factorize
from keras_compress.decomposition.kernel_ridge import (
    Covariance,
    SquaredExponential,
    choose_inputs,
    dictionary,
    prior_root,
)

RNG = np.random.default_rng(0)
PIXELS = np.stack(np.meshgrid(range(28), range(28), indexing="ij"), -1).reshape(-1, 2)


def similarity_matrix(places, width):
    return np.exp(scipy.spatial.distance.cdist(places, places, "sqeuclidean") / (-2 * width**2))


def test_denil_dictionary_is_kernel_ridge_regression_of_scikit_learn():
    values = RNG.normal(size=(20, 3))
    (chosen,) = choose_inputs(63, 20, seed=4)
    places = np.stack(np.meshgrid(range(9), range(7), indexing="ij"), -1).reshape(-1, 2)
    ridge = KernelRidge(alpha=1e-2, kernel="rbf", gamma=1 / (2 * 1.5**2))
    expected = ridge.fit(places[chosen], values).predict(places)
    predictors = dictionary(SquaredExponential((9, 7), 1.5), 63, chosen, 1e-2)
    np.testing.assert_allclose(predictors @ values, expected, atol=1e-8)


@pytest.mark.parametrize("ridge,tolerance", [(0.0, 1e-12), (1e-9, 1e-4)])
def test_denil_without_ridge_the_chosen_rows_are_predicted_as_they_are(ridge, tolerance):
    values = RNG.normal(size=(196, 4))
    (chosen,) = choose_inputs(784, 196)
    predictors = dictionary(SquaredExponential((28, 28), 2.0), 784, chosen, ridge)
    np.testing.assert_allclose((predictors @ values)[chosen], values, atol=tolerance)


# Draws of the pixels differ: at width 2 errors are from 1 to 5 %.
@pytest.mark.parametrize("width,low,high", [(2.0, 0.01, 0.05), (1.0, 0.25, 0.4)])
def test_denil_a_bump_is_predicted_from_a_quarter_of_its_pixels(width, low, high):
    bump = np.exp(-np.sum((PIXELS - 13.5) ** 2, axis=1) / (2 * 4.0**2))
    errors = []
    for chosen in choose_inputs(784, 196, columns=5):
        predictors = dictionary(SquaredExponential((28, 28), width), 784, chosen, 1e-6)
        errors.append(np.linalg.norm(predictors @ bump[chosen] - bump) / np.linalg.norm(bump))
    assert low < np.mean(errors) < high


def test_covariance_is_that_of_numpy_and_predicts_dependent_rows():
    mixing = RNG.normal(size=(4, 12))
    data = RNG.normal(size=(50, 4)) @ mixing + 3.0
    (chosen,) = choose_inputs(12, 5)
    similarity = Covariance(data)
    np.testing.assert_allclose(
        similarity.columns(12, chosen), np.cov(data.T, bias=True)[:, chosen], atol=1e-10
    )
    # Rows that follow the same four causes: five of them tell the rest.
    kernel = mixing.T @ RNG.normal(size=(4, 6))
    predictors = dictionary(similarity, 12, chosen, 1e-10)
    np.testing.assert_allclose(predictors @ kernel[chosen], kernel, atol=1e-6)


def test_channels_are_similar_to_themselves_alone():
    gram = SquaredExponential((4, 3), 1.5).columns(24, np.arange(24)).reshape(12, 2, 12, 2)
    places = np.stack(np.meshgrid(range(4), range(3), indexing="ij"), -1).reshape(-1, 2)
    expected = similarity_matrix(places, 1.5)
    for channel in range(2):
        np.testing.assert_allclose(gram[:, channel, :, channel], expected, atol=1e-12)
    assert np.all(gram[:, 0, :, 1] == 0)


def test_places_may_be_given_one_by_one():
    places = RNG.normal(size=(10, 3))
    found = SquaredExponential(places, 0.7).columns(10, np.arange(10))
    np.testing.assert_allclose(found, similarity_matrix(places, 0.7), atol=1e-12)


def test_root_of_the_prior_is_a_root_of_the_similarity():
    chosen = np.array([5, 0, 9])
    places = np.arange(12)[:, None]
    root = prior_root(SquaredExponential((12,), 2.0), 12, chosen)
    expected = similarity_matrix(places, 2.0)[np.ix_(chosen, chosen)]
    np.testing.assert_allclose(root @ root.T, expected, atol=1e-12)


def test_larger_choices_hold_the_smaller_ones_and_columns_differ():
    small, large = choose_inputs(40, 10, 3, seed=7), choose_inputs(40, 25, 3, seed=7)
    np.testing.assert_array_equal(large[:, :10], small)
    assert all(len(set(row)) == 25 for row in large.tolist())
    assert len({tuple(sorted(row)) for row in small.tolist()}) == 3


def test_decompose_fits_the_kernel_best_within_the_span_of_the_similarity():
    kernel = RNG.normal(size=(30, 8))
    gram = similarity_matrix(np.arange(30)[:, None], 2.0)
    errors = []
    for rank in (3, 8, 15):
        factors = decompose(kernel, "kernel_ridge", rank, coords=(30,), seed=2)
        (chosen,) = choose_inputs(30, rank, seed=2)
        # Whatever the ridge, the dictionary spans these columns.
        basis, _ = np.linalg.qr(gram[:, chosen])
        best = basis @ (basis.T @ kernel)
        np.testing.assert_allclose(factors.reconstruct(), best, atol=1e-6)
        assert factors.rank == (rank,) and factors.params() == rank * 38
        errors.append(factors.error(kernel))
    assert errors == sorted(errors, reverse=True)
    share = decompose(kernel, "kernel_ridge", 0.1, coords=(30,), seed=2)
    assert share.rank == (3,)
    assert FORMS["kernel_ridge"].shapes((30, 8), (3,)) == [a.shape for a in share.arrays]


def test_decompose_with_data_fits_the_responses():
    kernel, data = RNG.normal(size=(12, 5)), RNG.normal(size=(80, 12)) * np.linspace(0.1, 3, 12)
    factors = decompose(kernel, "kernel_ridge", 4, data=data)
    left = data @ factors.arrays[0]
    best = left @ np.linalg.pinv(left) @ (data @ kernel)
    np.testing.assert_allclose(data @ factors.reconstruct(), best, atol=1e-8)


@pytest.mark.parametrize(
    "rank,options,message",
    [
        (3, {}, "give coords=, the grid"),
        (3, {"coords": (5, 6), "data": np.ones((4, 30))}, "one of the two"),
        (3, {"coords": (7,)}, "multiple of the places of `coords`, 7; got 30 inputs"),
        (3, {"coords": np.zeros((29, 2))}, "the rows of `coords`, 29; got 30"),
        (3, {"coords": "grid"}, "`coords` must be the shape of a grid"),
        (3, {"coords": [(1, 2), (3,)]}, "`coords` must be the shape of a grid"),
        (3, {"coords": (5, 0)}, r"`coords\[1\]` must be a positive integer"),
        (3, {"coords": (30,), "width": 0}, "`width` must be a number in"),
        (3, {"coords": (30,), "ridge": -1}, "`ridge` must be a number in"),
        (3, {"data": np.ones((1, 30))}, "two samples or more"),
        (3, {"data": np.full((4, 30), np.nan)}, "`data` holds NaN"),
        (3, {"data": np.ones((4, 29))}, "of 30 values each; got 29"),
        (31, {"coords": (30,)}, "the largest useful rank is 30"),
        (1.5, {"coords": (30,)}, r"`rank` must be a number in \(0, 1\]"),
        ("evbmf", {"coords": (30,)}, "share of the inputs"),
    ],
)
def test_bad_arguments_are_refused(rank, options, message):
    with pytest.raises(ValueError, match=message):
        decompose(np.ones((30, 8)), "kernel_ridge", rank, **options)


# Whole models.


def small_net():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(3, 3, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(40, activation="relu", name="hidden"),
            keras.layers.Dense(20, name="logits"),
        ]
    )


X = np.random.default_rng(3).normal(size=(60, 8, 8, 1)).astype("float32")


def test_factorize_predicts_what_reads_a_flatten_by_the_places():
    model = small_net()
    result = factorize(model, "kernel_ridge", 0.5, verbose=0)
    layer = result.model.get_layer("hidden")
    assert isinstance(layer, kc.layers.PredictedDense)
    assert layer.coords == (6, 6) and layer.columns == 5
    kernel = ops.convert_to_numpy(model.get_layer("hidden").kernel)
    expected = kc.layers.PredictedDense.from_layer(
        model.get_layer("hidden"), fraction=0.5, coords=(6, 6)
    ).reconstruct_kernel()
    np.testing.assert_allclose(layer.reconstruct_kernel(), expected, atol=1e-6)
    rows = {row.layer: row for row in result.layers}
    assert rows["logits"].form is None and "conv" not in rows
    assert rows["hidden"].rank == (54,) and rows["hidden"].params_after == 54 * 40
    difference = np.linalg.norm(kernel - expected) / np.linalg.norm(kernel)
    assert rows["hidden"].error == pytest.approx(difference, rel=1e-4)


def test_factorize_predicts_any_dense_layer_by_the_covariance_of_its_inputs():
    model = small_net()
    result = factorize(
        model, "kernel_ridge", 6, "logits", "covariance", X, images=60, positions=1, verbose=0
    )
    (row,) = result.layers
    inputs = ops.convert_to_numpy(
        keras.Model(model.inputs[0], model.get_layer("hidden").output)(X)
    ).astype("float64")
    kernel = ops.convert_to_numpy(model.get_layer("logits").kernel)
    found = result.model.get_layer("logits").reconstruct_kernel()
    factors = decompose(kernel, "kernel_ridge", 6, data=inputs)
    np.testing.assert_allclose(inputs @ found, inputs @ factors.reconstruct(), atol=1e-4)
    error = np.linalg.norm(inputs @ (found - kernel)) / np.linalg.norm(inputs @ kernel)
    assert row.error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"layers": "logits"}, "layer 'logits' does not read a Flatten"),
        ({"layers": "conv"}, "form 'kernel_ridge' cannot hold it"),
        ({"objective": "response", "data": X}, "form='kernel_ridge' knows inputs by"),
        ({"rank": kc.decomposition.Budget(macs=0.5)}, "form='kernel_ridge' has none"),
    ],
)
def test_what_factorize_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        factorize(small_net(), "kernel_ridge", verbose=0, **arguments)
