"""`OptimalBrainSurgeon` against inverses and least squares of numpy."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.pruning.criteria.optimal_brain_surgeon import recursive_inverse

RNG = np.random.default_rng(0)
OBS = kc.pruning.criteria.OptimalBrainSurgeon


def kernel(model, name):
    return keras.ops.convert_to_numpy(model.get_layer(name).kernel).astype("float64")


def test_recursive_inverse_is_the_inverse():
    rows = RNG.normal(size=(70, 20)) * np.linspace(0.1, 3, 20)
    expected = np.linalg.inv(rows.T @ rows / 70 + 1e-4 * np.eye(20))
    np.testing.assert_allclose(recursive_inverse(rows, 1e-4), expected, rtol=1e-6, atol=1e-6)


def test_score_is_the_loss_left_after_the_best_change_of_the_others():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="fc")])
    x = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6))
    score = OBS(damping=1e-9)(model, data=x, batch_size=16)["fc/kernel"]
    weights = kernel(model, "fc")
    for q in range(6):
        others = np.delete(np.arange(6), q)
        for output in range(3):
            target = x @ weights[:, output]
            fitted = np.linalg.lstsq(x[:, others], target, rcond=None)[0]
            left = np.square(x[:, others] @ fitted - target).mean() / 2
            np.testing.assert_allclose(score[q, output], left, rtol=1e-4)


def test_block_layer_is_the_surgeon_on_outer_products_of_gradients():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, activation="tanh", name="fc")]
    )
    x, y = RNG.normal(size=(60, 4)), RNG.normal(size=(60, 3))
    score = OBS(damping=1e-3, block="layer")(model, data=(x, y), loss="mse")["fc/kernel"]
    weights = kernel(model, "fc")
    z = np.tanh(x @ weights)
    gradients = (x[:, :, None] * (2 / 3 * (z - y) * (1 - z**2))[:, None]).reshape(60, -1)
    hessian = gradients.T @ gradients / 60
    hessian += 1e-3 * np.diag(hessian).mean() * np.eye(12)
    expected = weights**2 / (2 * np.diag(np.linalg.inv(hessian)).reshape(4, 3))
    np.testing.assert_allclose(score, expected, rtol=1e-3)


CONVOLUTIONS = {
    "same-strided": keras.layers.Conv2D(4, (3, 2), strides=2, padding="same"),
    "dilated": keras.layers.Conv2D(4, 3, dilation_rate=2),
    "groups": keras.layers.Conv2D(4, 3, groups=2, padding="same"),
    "depthwise": keras.layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_patches_of_a_convolution_give_its_outputs(case):
    config = CONVOLUTIONS[case].get_config()
    layer = type(CONVOLUTIONS[case]).from_config({**config, "use_bias": False})
    model = keras.Sequential([keras.Input((7, 8, 4)), layer])
    criterion = OBS()
    graph = criterion.open(model)
    (part,) = criterion.parts(graph)
    lowered = kc.pruning.criteria.lowered.LoweredKernel(part, graph.graph.calls, "test")
    x = RNG.normal(size=(3, 7, 8, 4)).astype("float32")
    expected = keras.ops.convert_to_numpy(layer(x))
    weights = keras.ops.convert_to_numpy(part.variable)
    patches = np.concatenate(list(lowered.patches(x)), 1)
    products = np.einsum("gnpi,gio->gnpo", patches, lowered.to_matrices(weights))
    np.testing.assert_allclose(products, lowered.responses(expected), atol=1e-5)
    np.testing.assert_array_equal(lowered.from_matrices(lowered.to_matrices(weights)), weights)


@pytest.mark.parametrize("padding", ["causal", "same"])
def test_patches_of_a_shared_convolution_of_a_sequence_come_from_all_calls(padding):
    conv = keras.layers.Conv1D(3, 3, padding=padding, use_bias=False, name="conv")
    inputs = keras.Input((5, 2))
    model = keras.Model(inputs, keras.layers.Add()([conv(inputs), conv(inputs * 2.0)]))
    x = RNG.normal(size=(8, 5, 2))
    score = OBS()(model, data=x)["conv/kernel"]
    left = 2 if padding == "causal" else 1
    padded = np.pad(x, [(0, 0), (left, 2 - left), (0, 0)])
    patches = np.stack([padded[:, t : t + 3].reshape(8, 6) for t in range(5)], 1).reshape(-1, 6)
    hessian = patches.T @ patches * (1 + 4) / (2 * len(patches))
    hessian += 1e-6 * np.diag(hessian).mean() * np.eye(6)
    inverse = np.diag(np.linalg.inv(hessian)).reshape(3, 2, 1)
    np.testing.assert_allclose(score, kernel(model, "conv") ** 2 / (2 * inverse), rtol=1e-4)


def test_what_has_no_product_to_look_at_is_refused():
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(2, name="lstm")])
    with pytest.raises(ValueError, match="lstm/lstm_cell/kernel"):
        OBS()(model, data=np.ones((4, 4, 3)))
    model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(50)])
    with pytest.raises(ValueError, match="block='output'"):
        OBS(block="layer")(model, data=(np.ones((4, 200)), np.ones((4, 50))), loss="mse")
