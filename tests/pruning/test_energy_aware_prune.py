"""`energy_aware_prune`: order, support and refit against numpy."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from keras_compress.pruning.energy_aware_prune import LayerFit, by_energy
from keras_compress.pruning.prunable import prunable_kernels

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers for a test, whichever others run."""
    keras.utils.set_random_seed(0)
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def array(variable):
    return keras.ops.convert_to_numpy(variable).astype("float64")


def conv_model():
    x = inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="a")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Conv2D(8, 3, activation="relu", name="b")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="fc")(x))


def correlated(rows, inputs):
    return RNG.normal(size=(rows, inputs)) @ RNG.normal(size=(inputs, inputs)) / inputs**0.5


def layer_fit(groups=1, rows=200, inputs=12, outputs=5, damping=1e-12):
    matrices = RNG.normal(size=(groups, inputs, outputs))
    before = np.stack([correlated(rows, inputs) for _ in range(groups)])
    after = before + 0.1 * RNG.normal(size=before.shape)
    fit = LayerFit(matrices, damping)
    for part in np.array_split(np.arange(rows), 3):
        fit.update(before[:, part], after[:, part])
    return fit, before, after


def test_layers_go_in_the_order_of_their_energy():
    model = conv_model()
    kernels = by_energy(model, prunable_kernels(model))
    energies = {row.name: row.energy for row in kc.profile.energy(model).layers}
    expected = sorted(energies, key=energies.get, reverse=True)
    assert [kernel.layer.name for kernel in kernels] == expected
    assert expected != [kernel.layer.name for kernel in prunable_kernels(model)]


@pytest.mark.parametrize("groups", [1, 3])
def test_refit_equals_lstsq_on_the_support(groups):
    fit, before, after = layer_fit(groups)
    stays = RNG.random(fit.matrices.shape) < 0.5
    found = fit.refitted(stays)
    for group in range(groups):
        for output in range(5):
            there = stays[group, :, output]
            target = before[group] @ fit.matrices[group, :, output]
            expected = np.linalg.lstsq(after[group][:, there], target, rcond=None)[0]
            np.testing.assert_allclose(found[group, there, output], expected, atol=1e-6)
            assert (found[group, ~there, output] == 0).all()


def test_error_is_that_of_the_outputs():
    fit, before, after = layer_fit(2)
    matrices = RNG.normal(size=fit.matrices.shape)
    targets = before @ fit.matrices
    expected = np.square(targets - after @ matrices).sum() / np.square(targets).sum()
    assert fit.error(matrices) == pytest.approx(expected)


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_restored_set_lowers_the_error_at_equal_count(sparsity):
    lower = 0
    for _ in range(5):
        fit, _, _ = layer_fit(inputs=30)
        plain, restored = fit.support(sparsity, 0.0), fit.support(sparsity, 0.3)
        assert plain.sum() == restored.sum()
        # By magnitude alone.
        threshold = np.sort(np.abs(fit.matrices), axis=None)[-plain.sum()]
        np.testing.assert_array_equal(plain, np.abs(fit.matrices) >= threshold)
        errors = [fit.error(fit.matrices * stays) for stays in (plain, restored)]
        assert errors[1] <= errors[0]
        lower += errors[1] < 0.95 * errors[0]
    assert lower >= 3


def test_a_restored_weight_is_the_one_whose_return_gains_the_most():
    fit, before, after = layer_fit(inputs=6, outputs=2)
    stays = fit.support(0.5, 1 / 6)
    magnitude = np.abs(fit.matrices) >= np.sort(np.abs(fit.matrices), axis=None)[-5]
    best = None
    for place in np.argwhere(~magnitude):
        with_it = magnitude.copy()
        with_it[tuple(place)] = True
        error = np.square(before @ fit.matrices - after @ (fit.matrices * with_it)).sum()
        best = min(best or (np.inf, None), (error, tuple(place)))
    expected = magnitude.copy()
    expected[best[1]] = True
    np.testing.assert_array_equal(stays, expected)


def test_each_layer_keeps_its_tolerance_and_zeros_stay():
    model = conv_model()
    x = RNG.normal(size=(60, 8, 8, 2)).astype("float32")
    model.compile("adam", "mse")
    before = [array(weight) for weight in model.weights]
    pruned = kc.pruning.energy_aware_prune(model, x, 0.05, positions=100)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    for name in ("a", "depthwise", "b", "fc"):
        assert 0.05 < np.mean(array(pruned.get_layer(name).kernel) == 0) < 0.95
    # The first in the order of energy, whose inputs are the original's.
    layer = model.get_layer("b")
    source = keras.Model(model.input, layer.input)(x)
    kernels = layer.kernel, pruned.get_layer("b").kernel
    outputs, found = (array(keras.ops.conv(source, kernel)) for kernel in kernels)
    error = np.square(outputs - found).sum() / np.square(outputs).sum()
    assert 0.5 * 0.05 < error <= 0.05 * 1.001
    zeros = array(pruned.get_layer("b").kernel) == 0
    pruned.fit(x, np.zeros((60, 3)), epochs=1, verbose=0)
    assert (array(pruned.get_layer("b").kernel)[zeros] == 0).all()
    assert kc.profile.energy(pruned).total < kc.profile.energy(model).total


def test_refit_and_restoring_beat_magnitude_at_the_same_sparsities():
    model = conv_model()
    x = RNG.normal(size=(80, 8, 8, 2)).astype("float32")
    pruned = kc.pruning.energy_aware_prune(model, x[:60], 0.1)
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    for layer, new in zip(plain.layers, pruned.layers, strict=True):
        if hasattr(layer, "kernel"):
            kernel, zeros = array(layer.kernel), (array(new.kernel) == 0).sum()
            kernel.flat[np.argsort(np.abs(kernel), axis=None)[:zeros]] = 0
            layer.kernel.assign(kernel)
    y = array(model(x[60:]))
    errors = [np.square(array(one(x[60:])) - y).mean() for one in (pruned, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_bad_input_is_refused():
    model = conv_model()
    x = RNG.normal(size=(4, 8, 8, 2))
    with pytest.raises(ValueError, match="`tolerance` must be a number in"):
        kc.pruning.energy_aware_prune(model, x, 0.0)
    with pytest.raises(ValueError, match="`restored` must be a number in"):
        kc.pruning.energy_aware_prune(model, x, restored=2)
    with pytest.raises(ValueError, match="no kernel that this is for"):
        kc.pruning.energy_aware_prune(
            keras.Sequential([keras.Input((4, 2)), layers.LSTM(3)]), np.ones((2, 4, 2))
        )
