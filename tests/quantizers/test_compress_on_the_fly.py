"""compress_on_the_fly: Soulie's binary hidden layers and product-quantised output layer."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc

RNG = np.random.default_rng(0)


def array(variable):
    return ops.convert_to_numpy(variable)


def model_of(units=40, **kwargs):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, name="conv"),
        keras.layers.Flatten(),
        keras.layers.Dense(24, activation="relu", name="hidden_1", **kwargs),
        keras.layers.Dense(16, activation="relu", name="hidden_2", **kwargs),
        keras.layers.Dense(units, name="out"),
        keras.layers.Softmax(),
    ]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


def test_soulie_hidden_weights_take_two_values_and_the_output_few_vectors():
    model = model_of()
    small = kc.quantizers.compress_on_the_fly(model, segment=4, k=8)
    for name in ("hidden_1", "hidden_2"):
        kernel = array(model.get_layer(name).kernel)
        values = array(small.get_layer(name).expand().kernel)
        expected = np.where(kernel >= 0, 1, -1) * np.abs(kernel).mean()
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        assert len(np.unique(values)) == 2
    out = array(small.get_layer("out").expand().kernel)
    for place in range(4):
        segments = out[4 * place : 4 * place + 4].T
        assert len(np.unique(segments, axis=0)) <= 8
    np.testing.assert_array_equal(
        array(small.get_layer("conv").kernel), array(model.get_layer("conv").kernel)
    )
    # The function of the new model is that of these kernels.
    x = RNG.normal(size=(5, 6, 6, 1)).astype("float32")
    plain = model_of()
    plain.set_weights(model.get_weights())
    for name in ("hidden_1", "hidden_2", "out"):
        plain.get_layer(name).kernel.assign(small.get_layer(name).expand().kernel)
    np.testing.assert_allclose(array(small(x)), array(plain(x)), atol=1e-5)


def test_soulie_bits_are_one_a_hidden_weight_and_those_of_the_codes():
    small = kc.quantizers.compress_on_the_fly(model_of(), segment=4, k=8)
    binary = (64 * 24 + 32) + (24 * 16 + 32)
    codes, centres = 4 * 40 * 3, 4 * 8 * 4 * 32
    floats = 32 * ((9 * 4 + 4) + 24 + 16 + 40)
    assert kc.profile.storage_bits(small) == binary + codes + centres + floats


def test_soulie_weights_that_were_attracted_move_little():
    x = RNG.normal(size=(400, 6, 6, 1)).astype("float32")
    y = (x[:, :, :3].sum(axis=(1, 2, 3)) > x[:, :, 3:].sum(axis=(1, 2, 3))).astype("int32")
    moved = []
    for strength in (0.0, 0.02):
        model = model_of(kernel_regularizer=kc.regularizers.BinaryAttraction(strength))
        model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
        ramp = kc.callbacks.PenaltyRamp(epochs=10)
        model.fit(x, y, epochs=25, callbacks=[ramp], verbose=0)
        small = kc.quantizers.compress_on_the_fly(model)
        kernel = array(model.get_layer("hidden_1").kernel)
        change = array(small.get_layer("hidden_1").expand().kernel) - kernel
        moved.append(np.linalg.norm(change) / np.linalg.norm(kernel))
    assert moved[0] > 0.4 and moved[1] < 0.2


def test_keys_choose_the_layers():
    model = model_of()
    small = kc.quantizers.compress_on_the_fly(model, hidden="hidden_1", output=["hidden_2"], k=8)
    kinds = {layer.name: type(layer).__name__ for layer in small.layers}
    assert kinds["hidden_1"] == "QuantDense" and kinds["hidden_2"] == "CodebookDense"
    assert kinds["out"] == "Dense"


def test_bad_arguments_are_refused():
    compress = kc.quantizers.compress_on_the_fly
    with pytest.raises(ValueError, match="'out' take as much as its 10 units .* k=16"):
        compress(model_of(units=10))
    with pytest.raises(ValueError, match="No layer matches 'conv'"):
        compress(model_of(), hidden="conv")
    with pytest.raises(ValueError, match="'out' is chosen as hidden layer and as output layer"):
        compress(model_of(), hidden="*", output="out")
    with pytest.raises(ValueError, match="no dense hidden layer; name Dense layers by `hidden`"):
        compress(keras.Sequential([keras.Input((4,)), keras.layers.Dense(40)]))
    with pytest.raises(ValueError, match="`k` must be a positive integer"):
        compress(model_of(), k=0)
