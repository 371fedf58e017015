"""`APoZ`: shares of zeros, and only where a ReLU gives them."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
APoZ = kc.pruning.criteria.APoZ


def test_exact_on_hand_data():
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Conv2D(2, 1, name="conv")])
    model.add(keras.layers.ReLU())
    model.set_weights([np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.array([0.0, -2.0])])
    x = np.array([[[1, -1], [3, 0]], [[-4, -1], [2, -3]], [[5, 6], [7, 8]]], "float32")[..., None]
    # Filter 0 is positive at 1, 3, 2, 5, 6, 7, 8; filter 1 where -x - 2 > 0: at -4, -3.
    expected = np.array([7, 2]) / 12
    np.testing.assert_array_equal(APoZ()(model, data=x, batch_size=2)["conv"], expected)


def test_a_dead_relu_has_apoz_1_and_its_removal_changes_nothing():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(6, 3, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Activation("relu"),
            keras.layers.Conv2D(4, 3, padding="same", name="next"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    beta = np.zeros(6)
    beta[[1, 4]] = -100
    model.get_layer("bn").beta.assign(beta)
    x = RNG.normal(size=(16, 8, 8, 3)).astype("float32")
    scores = APoZ()(model, data=x)
    # The last layer and the one before it have no ReLU.
    assert list(scores) == ["conv"]
    assert set(np.flatnonzero(scores["conv"] == 0)) == {1, 4}
    small = kc.pruning.prune_channels(model, "apoz", 2 / 6, data=x)
    assert small.get_layer("conv").filters == 4
    np.testing.assert_allclose(small.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_the_relus_own_map_counts_where_a_batch_normalization_follows_it():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu", name="fc")])
    model.add(keras.layers.BatchNormalization(beta_initializer="ones"))
    x = RNG.normal(size=(32, 3)).astype("float32")
    relu = keras.ops.convert_to_numpy(model.layers[0](x))
    np.testing.assert_allclose(APoZ()(model, data=x)["fc"], (relu > 0).mean(0))


@pytest.mark.parametrize(
    "after",
    [
        lambda: keras.layers.Activation("tanh"),
        lambda: keras.layers.LeakyReLU(),
        lambda: keras.layers.ReLU(negative_slope=0.1),
        lambda: keras.layers.MaxPooling2D(),
    ],
)
def test_needs_a_relu_type_activation_or_refuses(after):
    # All outputs of the layer are 0: the data cannot be what decides.
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3, kernel_initializer="zeros", name="c")]
    )
    model.add(after())
    x = np.ones((2, 4, 4, 1), "float32")
    with pytest.raises(ValueError, match="after 'c' comes no ReLU"):
        APoZ()(model, "c", x)
    with pytest.raises(ValueError, match="no layer that a ReLU comes after"):
        APoZ()(model, data=x)


@pytest.mark.parametrize(
    "relu", [keras.ops.relu, keras.ops.relu6, keras.layers.ReLU(6.0), keras.activations.relu6]
)
def test_relu_layers_and_operations_are_known(relu):
    inputs = keras.Input((3,))
    outputs = relu(keras.layers.Dense(4, name="fc")(inputs))
    model = keras.Model(inputs, outputs)
    x = RNG.normal(size=(20, 3)).astype("float32")
    shares = (model.predict(x, verbose=0) > 0).mean(0)
    np.testing.assert_allclose(APoZ()(model, "fc", x)["fc"], shares)
