"""PredictedDense: what the protocol tests do not cover."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.decomposition.kernel_ridge import choose_inputs
from keras_compress.layers import PredictedDense

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)
RNG = np.random.default_rng(0)


def built(units=12, inputs=36, **arguments):
    layer = PredictedDense(units, **{"coords": (6, 6), **arguments})
    layer.build((None, inputs))
    return layer


def predicted_kernel(layer, gram):
    """Kernel ridge regression, unit by unit."""
    inputs, count = len(gram), layer.values.shape[0]
    chosen = choose_inputs(inputs, count, layer.columns, layer.seed)
    values = ops.convert_to_numpy(layer.values).astype("float64")
    kernel = np.empty((inputs, layer.units))
    for k, units in enumerate(np.array_split(np.arange(layer.units), layer.columns)):
        a = chosen[k]
        block = gram[np.ix_(a, a)]
        ridge = layer.ridge * np.mean(np.diag(block)) * np.eye(count)
        kernel[:, units] = gram[:, a] @ np.linalg.solve(block + ridge, values[:, units])
    return kernel


def pixels_gram(width=2.0):
    places = np.stack(np.meshgrid(range(6), range(6), indexing="ij"), -1).reshape(-1, 2)
    return np.exp(-np.sum((places[:, None] - places) ** 2, -1) / (2 * width**2))


def test_denil_equals_dense_with_the_kernel_that_is_predicted():
    layer = built(columns=3, ridge=1e-2, activation="relu", bias_initializer="ones")
    x = RNG.normal(size=(4, 36)).astype("float32")
    expected = np.maximum(x @ predicted_kernel(layer, pixels_gram()) + 1, 0)
    np.testing.assert_allclose(layer(x), expected, atol=1e-4)


def test_denil_covariance_of_the_inputs_takes_the_place_of_the_pixels():
    data = (RNG.normal(size=(80, 36)) @ RNG.normal(size=(36, 36))).astype("float32")
    layer = built(coords=None, kernel="covariance", data=data, columns=2, ridge=1e-2)
    expected = predicted_kernel(layer, np.cov(data.T.astype("float64"), bias=True))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(layer.reconstruct_kernel(), expected, atol=1e-4 * scale)


@pytest.mark.parametrize("fraction,count", [(0.25, 9), (0.3, 11), (0.001, 1), (1.0, 36)])
def test_denil_trainable_weights_are_the_rows_of_the_chosen_inputs(fraction, count):
    layer = built(fraction=fraction, use_bias=False)
    (weights,) = layer.trainable_weights
    assert tuple(weights.shape) == (count, 12)
    assert layer.count_params() == count * 12 and layer.storage_bits() == 32 * count * 12


def test_denil_dictionaries_of_the_covariance_count_as_stored():
    layer = built(coords=None, kernel="covariance", data=RNG.normal(size=(50, 36)), columns=2)
    assert sum(np.prod(w.shape) for w in layer.trainable_weights) == 9 * 12 + 12
    assert layer.storage_bits() == 32 * (9 * 12 + 12 + 2 * 9 * 36)


def test_denil_without_ridge_the_values_are_rows_of_the_kernel():
    layer = built(columns=1, ridge=0.0)
    (chosen,) = choose_inputs(36, 9)
    np.testing.assert_allclose(layer.reconstruct_kernel()[chosen], layer.values, atol=1e-6)


def test_denil_with_all_inputs_and_no_ridge_it_is_dense():
    layer = built(fraction=1.0, ridge=0.0, columns=4)
    for k, chosen in enumerate(choose_inputs(36, 36, 4)):
        units = slice(3 * k, 3 * k + 3)
        values = ops.convert_to_numpy(layer.values)[:, units]
        np.testing.assert_array_equal(layer.reconstruct_kernel()[chosen, units], values)


def test_a_smooth_kernel_is_found_again_by_from_layer():
    dense = keras.layers.Dense(12)
    dense.build((None, 36))
    places = np.stack(np.meshgrid(range(6), range(6), indexing="ij"), -1).reshape(-1, 2)
    centres = RNG.uniform(0, 5, size=(12, 2))
    dense.kernel.assign(np.exp(-np.sum((places[:, None] - centres) ** 2, -1) / 18))
    kernel = ops.convert_to_numpy(dense.kernel)
    layer = PredictedDense.from_layer(dense, coords=(6, 6), fraction=0.4, columns=2)
    assert np.linalg.norm(layer.reconstruct_kernel() - kernel) < 0.02 * np.linalg.norm(kernel)


def test_predicted_kernel_of_a_new_layer_is_smooth_and_has_the_spread_asked_for():
    keras.utils.set_random_seed(0)
    layer = PredictedDense(200, coords=(12, 12), kernel_initializer="he_normal")
    layer.build((None, 144))
    kernel = layer.reconstruct_kernel()
    assert np.std(kernel) == pytest.approx((2 / 144) ** 0.5, rel=0.1)
    image = kernel.reshape(12, 12, -1)
    # Neighbours of a Gaussian process of width 2 px: correlation exp(-1/8), less where predicted
    # values are shrunk.
    assert np.corrcoef(image[1:].ravel(), image[:-1].ravel())[0, 1] > 0.75


def test_covariance_model_is_restored_without_its_samples(tmp_path):
    layer = PredictedDense(12, kernel="covariance", data=RNG.normal(size=(50, 20)), columns=2)
    model = keras.Sequential([keras.Input((20,)), layer])
    assert "data" not in layer.get_config()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = RNG.normal(size=(3, 20)).astype("float32")
    np.testing.assert_allclose(clone(x), model(x), atol=1e-6)


@on_tensorflow
@pytest.mark.parametrize("columns,fraction", [(1, 0.125), (5, 0.25)])
def test_tflite_stores_what_is_smaller(columns, fraction):
    from keras_compress.export import to_tflite

    layer = PredictedDense(300, coords=(16, 16), columns=columns, fraction=fraction)
    model = keras.Sequential([keras.Input((256,)), layer])
    lite = to_tflite(model)
    count = int(256 * fraction)
    stored = count * (columns * 256 + 300)
    dense = 256 * 300
    assert layer.macs() == min(stored, dense)
    assert 4 * min(stored, dense) < lite.nbytes < 4 * min(stored, dense) + 8192
    assert lite.ops.count("FULLY_CONNECTED") == (2 if stored < dense else 1)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"fraction": 0}, r"`fraction` must be a number in \(0, 1\]"),
        ({"coords": None}, "kernel='squared_exponential' needs `coords`"),
        ({"data": np.ones((4, 36))}, "takes no `data`"),
        ({"kernel": "covariance"}, "kernel='covariance' needs `data`"),
        ({"kernel": "rbf"}, "`kernel` must be one of 'squared_exponential', 'covariance'"),
        ({"columns": 13}, "at most the 12 units; got columns=13"),
        ({"width": 0.0}, "`width` must be a number in"),
        ({"ridge": -1}, "`ridge` must be a number in"),
        ({"seed": None}, "`seed` must be an integer"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=f"PredictedDense: .*{message}"):
        PredictedDense(12, **{"coords": (6, 6), **arguments})


def test_a_grid_that_is_not_the_inputs_is_refused_at_build_and_by_from_layer():
    with pytest.raises(ValueError, match="PredictedDense: .* 36; got 40 inputs"):
        built(inputs=40)
    dense = keras.layers.Dense(12)
    dense.build((None, 40))
    with pytest.raises(ValueError, match="PredictedDense: .* 36; got 40 inputs"):
        PredictedDense.from_layer(dense, coords=(6, 6))
