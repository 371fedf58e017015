"""`OptimalBrainDamage` against Hessians written out by hand."""

import keras
import numpy as np
import pytest
from scipy.special import softmax

import keras_compress as kc

RNG = np.random.default_rng(0)
OBD = kc.pruning.criteria.OptimalBrainDamage


def half_square(targets, outputs):
    return keras.ops.sum(keras.ops.square(targets - outputs), -1) / 2


def linear(inputs, units, use_bias=False):
    model = keras.Sequential(
        [keras.Input((inputs,)), keras.layers.Dense(units, use_bias=use_bias, name="fc")]
    )
    model.layers[0].kernel.assign(RNG.normal(size=(inputs, units)))
    return model


def kernel(model, name="fc"):
    return keras.ops.convert_to_numpy(model.get_layer(name).kernel).astype("float64")


def diagonal(score, weights):
    return 2 * score / weights**2


def test_gauss_newton_of_linear_least_squares_is_the_diagonal_of_second_moments():
    model = linear(5, 3)
    x = RNG.normal(size=(40, 5)) * [1, 2, 3, 4, 5]
    y = RNG.normal(size=(40, 3))
    score = OBD()(model, data=(x, y), loss=half_square, batch_size=16)["fc/kernel"]
    expected = np.broadcast_to(np.diag(x.T @ x / 40)[:, None], (5, 3))
    np.testing.assert_allclose(diagonal(score, kernel(model)), expected, rtol=1e-5)
    # Of the mean over outputs, of squares that are not halved.
    score = OBD()(model, data=(x, y), loss="mse")["fc/kernel"]
    np.testing.assert_allclose(diagonal(score, kernel(model)), expected * 2 / 3, rtol=1e-5)


def test_gauss_newton_of_a_classifier_is_that_of_the_softmax():
    model = linear(4, 3, use_bias=True)
    x, y = RNG.normal(size=(30, 4)), RNG.integers(0, 3, 30)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    score = OBD()(model, data=(x, y), loss=loss)["fc/kernel"]
    p = softmax(x @ kernel(model), axis=1)
    expected = np.einsum("ni,no->io", x**2, p * (1 - p)) / 30
    np.testing.assert_allclose(diagonal(score, kernel(model)), expected, rtol=1e-4)


def test_gauss_newton_through_a_hidden_layer_equals_products_of_jacobians():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation="tanh", name="first"),
            keras.layers.Dense(2, use_bias=False, name="fc"),
        ]
    )
    x, y = RNG.normal(size=(20, 3)), RNG.normal(size=(20, 2))
    scores = OBD()(model, data=(x, y), loss=half_square)
    first, second = kernel(model, "first"), kernel(model)
    slope = 1 - np.tanh(x @ first) ** 2
    jacobian = np.einsum("ni,nj,jo->noij", x, slope, second)
    expected = np.square(jacobian).sum(1).mean(0)
    np.testing.assert_allclose(diagonal(scores["first/kernel"], first), expected, rtol=1e-4)


def test_fisher_is_the_mean_of_squared_gradients():
    model = linear(4, 2)
    x, y = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 2))
    score = OBD("fisher")(model, data=(x, y), loss=half_square)["fc/kernel"]
    residual = x @ kernel(model) - y
    expected = np.square(x[:, :, None] * residual[:, None]).mean(0)
    np.testing.assert_allclose(diagonal(score, kernel(model)), expected, rtol=1e-4)


def test_hutchinson_is_exact_for_a_diagonal_hessian_and_an_estimate_otherwise():
    model = linear(4, 1)
    x = np.diag([1.0, 2, 3, 4])
    y = np.zeros((4, 1))
    options = {"data": (x, y), "loss": half_square}
    one = OBD("hutchinson", probes=1)(model, **options)["fc/kernel"]
    exact = OBD()(model, **options)["fc/kernel"]
    np.testing.assert_allclose(one, exact, rtol=1e-5)
    options["data"] = (x + 0.3, y)
    many = OBD("hutchinson", probes=400)(model, **options)["fc/kernel"]
    np.testing.assert_allclose(many, OBD()(model, **options)["fc/kernel"], rtol=0.2)
    again = OBD("hutchinson", probes=2, seed=5)(model, **options)["fc/kernel"]
    np.testing.assert_array_equal(
        again, OBD("hutchinson", probes=2, seed=5)(model, **options)["fc/kernel"]
    )


@pytest.mark.parametrize("hessian", ["gauss_newton", "hutchinson"])
def test_predicted_increase_is_the_true_one_on_a_diagonal_quadratic(hessian):
    model = linear(4, 2)
    x = np.linalg.qr(RNG.normal(size=(8, 4)))[0] * [1, 2, 3, 4]
    weights = kernel(model)
    y = x @ weights  # at the minimum
    score = OBD(hessian, probes=1)(model, data=(x, y), loss=half_square)["fc/kernel"]
    for index in np.ndindex(weights.shape):
        without = weights.copy()
        without[index] = 0
        increase = np.square(x @ without - y).sum(1).mean() / 2
        np.testing.assert_allclose(score[index], increase, rtol=1e-4)


def test_ranking_differs_from_magnitude_where_inputs_differ_in_scale():
    model = linear(2, 1)
    model.layers[0].kernel.assign([[1.0], [0.5]])
    x = RNG.normal(size=(50, 2)) * [0.1, 10]
    data = (x, x @ kernel(model))
    obd = kc.pruning.prune_weights(model, "obd", 0.5, data, loss="mse")
    magnitude = kc.pruning.prune_weights(model, "magnitude", 0.5)
    assert kernel(obd).ravel().tolist() == [0.0, 0.5]
    assert kernel(magnitude).ravel().tolist() == [1.0, 0.0]


def test_convolutions_and_recurrent_kernels_have_scores():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(3, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Reshape((4, 12))(x)
    x = keras.layers.GRU(2, name="gru")(x)
    model = keras.Model(inputs, keras.layers.Dense(1, name="fc")(x))
    x, y = RNG.normal(size=(6, 6, 6, 2)), RNG.normal(size=(6, 1))
    scores = OBD("fisher")(model, data=(x, y), loss="mse")

    # The mean of squared gradients, by finite differences of one weight of each kernel.
    def losses():
        return np.square(model.predict(x, verbose=0) - y)[:, 0]

    kernels = {
        "conv/kernel": model.get_layer("conv").kernel,
        "gru/gru_cell/recurrent_kernel": model.get_layer("gru").cell.recurrent_kernel,
    }
    for name, variable in kernels.items():
        value = keras.ops.convert_to_numpy(variable)
        place = (0,) * value.ndim
        moved, ends = value.copy(), []
        for step in (1e-2, -1e-2):
            moved[place] = value[place] + step
            variable.assign(moved)
            ends.append(losses())
        variable.assign(value)
        expected = np.square((ends[0] - ends[1]) / 2e-2).mean() * value[place] ** 2 / 2
        np.testing.assert_allclose(scores[name][place], expected, rtol=0.02)


def test_labels_and_a_loss_are_needed():
    model = linear(4, 2)
    with pytest.raises(ValueError, match=r"data=\(x, y\)"):
        OBD()(model, data=np.ones((4, 4)), loss="mse")
    with pytest.raises(ValueError, match="Compile it"):
        OBD()(model, data=(np.ones((4, 4)), np.ones((4, 2))))
    inputs = keras.Input((4,))
    two = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(2)(inputs)])
    with pytest.raises(ValueError, match="2 outputs"):
        OBD()(two, data=(np.ones((4, 4)), np.ones((4, 2))), loss="mse")
    with pytest.raises(ValueError, match="gauss_newton"):
        OBD("exact")
