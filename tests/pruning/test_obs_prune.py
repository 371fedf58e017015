"""`obs_prune` against constrained least squares and brute force."""

import importlib

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.pruning.obs_prune import remove_weights

RNG = np.random.default_rng(0)


def kernel(model, name="fc"):
    return keras.ops.convert_to_numpy(model.get_layer(name).kernel).astype("float64")


def dense(inputs, outputs):
    return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(outputs, name="fc")])


def correlated(rows, columns):
    return RNG.normal(size=(rows, columns)) @ (np.eye(columns) + RNG.normal(size=(columns,) * 2))


def test_after_removal_the_rest_is_the_constrained_least_squares_solution():
    model = dense(10, 4)
    x = correlated(80, 10)
    pruned = kernel(kc.pruning.obs_prune(model, 0.4, x, damping=1e-9))
    weights = kernel(model)
    assert (pruned == 0).sum() == 16
    for output in range(4):
        stays = pruned[:, output] != 0
        expected = np.linalg.lstsq(x[:, stays], x @ weights[:, output], rcond=None)[0]
        np.testing.assert_allclose(pruned[stays, output], expected, rtol=1e-3, atol=1e-4)


def one_by_one(matrix, hessian, count):
    """The method as written: after each removal, new weights and a new inverse for that output."""
    weights = matrix.copy()
    inverses = [np.linalg.inv(hessian) for _ in range(matrix.shape[1])]
    gone = np.zeros(matrix.shape, bool)
    for _ in range(count):
        diagonal = np.stack([np.diag(inverse) for inverse in inverses], 1)
        cost = np.where(gone, np.inf, weights**2 / (2 * np.where(gone, 1, diagonal)))
        q, output = np.unravel_index(cost.argmin(), cost.shape)
        inverse = inverses[output]
        weights[:, output] -= weights[q, output] / inverse[q, q] * inverse[:, q]
        inverses[output] = inverse - np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        gone[q, output] = True
    return gone, np.where(gone, 0, weights)


@pytest.mark.parametrize("stage", [3, 64])
def test_removing_one_by_one_equals_the_closed_form_for_the_set(stage, monkeypatch):
    module = importlib.import_module("keras_compress.pruning.obs_prune")
    monkeypatch.setattr(module, "_STAGE", stage)
    x = correlated(60, 12)
    hessian = x.T @ x / 60
    matrix = RNG.normal(size=(12, 5)) * [0.3, 1, 1, 2, 3]
    for count in (1, 17, 40, 59):
        gone, weights = remove_weights(matrix[None], hessian[None], count)
        expected_gone, expected = one_by_one(matrix, hessian, count)
        np.testing.assert_array_equal(gone[0], expected_gone)
        np.testing.assert_allclose(weights[0], expected, atol=1e-8)


def test_loss_after_obs_is_at_most_that_after_obd_and_that_at_most_that_after_magnitude():
    model = dense(12, 3)
    x = correlated(100, 12) * np.linspace(0.2, 4, 12)
    y = x @ kernel(model)

    def loss(other):
        return np.square(x @ kernel(other) - y).mean()

    for sparsity in (0.25, 0.5, 0.75):
        magnitude = kc.pruning.prune_weights(model, "magnitude", sparsity)
        obd = kc.pruning.prune_weights(model, "obd", sparsity, (x, y), loss="mse")
        score_only = kc.pruning.prune_weights(model, "obs", sparsity, x)
        obs = kc.pruning.obs_prune(model, sparsity, x)
        assert loss(obs) < loss(obd) < loss(magnitude)
        assert loss(obs) < loss(score_only)
        assert (kernel(obs) == 0).sum() == (kernel(obd) == 0).sum() == round(36 * sparsity)


def test_convolution_is_refitted_on_its_patches():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(3, 3, strides=2, padding="same", use_bias=False, name="fc"),
        ]
    )
    x = RNG.normal(size=(40, 6, 6, 2)).cumsum(1).cumsum(2).astype("float32")
    pruned = kc.pruning.obs_prune(model, 0.5, x, damping=1e-9)
    windows = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
    patches = np.stack(
        [windows[:, r : r + 3, c : c + 3].reshape(40, 18) for r in (0, 2, 4) for c in (0, 2, 4)], 1
    ).reshape(-1, 18)
    weights, found = kernel(model).reshape(18, 3), kernel(pruned).reshape(18, 3)
    assert (found == 0).sum() == 27
    for output in range(3):
        stays = found[:, output] != 0
        expected = np.linalg.lstsq(patches[:, stays], patches @ weights[:, output], rcond=None)[0]
        np.testing.assert_allclose(found[stays, output], expected, rtol=5e-3, atol=1e-3)


def test_redundant_inputs_are_pruned_without_any_error():
    model = dense(8, 4)
    x = RNG.normal(size=(50, 8)).astype("float32")
    x[:, 4:] = x[:, :4]
    pruned = kc.pruning.obs_prune(model, 0.5, x)
    assert (kernel(pruned) == 0).sum() == 16
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(pruned.predict(x, verbose=0), expected, atol=1e-4)


def test_many_weights_at_once_agree_with_least_squares():
    # As large as real layers: the removals run in stages and blocks of outputs.
    x = RNG.normal(size=(600, 192)) @ (np.eye(192) + 0.3 * RNG.normal(size=(192, 192)))
    matrix = RNG.normal(size=(192, 160))
    hessian = x.T @ x / 600
    gone, weights = remove_weights(matrix[None], hessian[None], 24576)
    assert gone.sum() == 24576 and (weights[gone] == 0).all()
    for output in (0, 80, 159):
        stays = ~gone[0, :, output]
        expected = np.linalg.lstsq(x[:, stays], x @ matrix[:, output], rcond=None)[0]
        np.testing.assert_allclose(weights[0, stays, output], expected, atol=1e-6)


def test_what_is_pruned_already_stays_so_and_the_callers_model_as_it_is():
    model = dense(10, 4)
    x = correlated(40, 10)
    before = kernel(model)
    half = kc.pruning.obs_prune(model, 0.5, x)
    more = kc.pruning.obs_prune(half, 0.75, x)
    same = kc.pruning.obs_prune(half, 0.25, x)
    np.testing.assert_array_equal(kernel(model), before)
    assert (kernel(more) == 0).sum() == 30 and (kernel(more)[kernel(half) == 0] == 0).all()
    np.testing.assert_allclose(kernel(same), kernel(half), atol=1e-5)


def test_recurrent_layers_must_be_left_out():
    model = keras.Sequential(
        [keras.Input((4, 3)), keras.layers.GRU(4, name="gru"), keras.layers.Dense(2, name="fc")]
    )
    x = RNG.normal(size=(10, 4, 3))
    with pytest.raises(ValueError, match="obs_prune: 'gru/gru_cell/kernel'.*`layers=`"):
        kc.pruning.obs_prune(model, 0.5, x)
    assert (kernel(kc.pruning.obs_prune(model, 0.5, x, layers="fc")) == 0).sum() == 4
