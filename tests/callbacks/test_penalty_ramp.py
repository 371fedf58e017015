"""PenaltyRamp: Soulie's growing penalty, inside the compiled step."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(256, 12)).astype("float32")
Y = np.tanh(X @ RNG.normal(size=(12, 3))).astype("float32")


def array(variable):
    return ops.convert_to_numpy(variable)


def model_of(strength, optimizer=None, **kwargs):
    keras.utils.set_random_seed(0)
    attraction = kc.regularizers.BinaryAttraction(strength, **kwargs)
    layers = [
        keras.layers.Dense(16, activation="relu", kernel_regularizer=attraction, name="hidden"),
        keras.layers.Dense(3, name="out"),
    ]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.compile(optimizer or keras.optimizers.Adam(5e-3), "mse")
    return model


def near(kernel, share=0.1):
    """Share of weights within 10 % of c or -c."""
    sizes = np.abs(array(kernel))
    return np.mean(np.abs(sizes - sizes.mean()) < share * sizes.mean())


def test_soulie_weights_gather_at_two_values_for_a_large_strength():
    model = model_of(0.1)
    before = near(model.layers[0].kernel)
    ramp = kc.callbacks.PenaltyRamp(epochs=20)
    model.fit(X, Y, epochs=60, callbacks=[ramp], verbose=0)
    assert before < 0.2 and near(model.layers[0].kernel) > 0.9
    assert near(model.layers[1].kernel) < 0.6


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_factor_of_each_epoch_acts_in_the_compiled_step(jit_compile):
    """A loss without slope and plain SGD: the weights show the factors that were used."""
    scale, strength, rate = 10.0, 0.02, 0.5
    attraction = kc.regularizers.BinaryAttraction(strength, scale=scale)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(1, use_bias=False, kernel_regularizer=attraction),
        ]
    )
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=jit_compile)
    start = np.array([[0.5], [-0.5]], "float32")
    model.layers[0].kernel.assign(start)
    moved = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            moved.append(np.abs(array(model.layers[0].kernel) - start).max())

    callbacks = [kc.callbacks.PenaltyRamp(epochs=4, start=0.2), Watch()]
    zeros = np.zeros((4, 2), "float32")
    model.fit(zeros, zeros[:, :1], epochs=6, batch_size=2, callbacks=callbacks, verbose=0)
    steps = np.diff([0, *moved]) / (2 * rate * strength / scale)
    np.testing.assert_allclose(steps, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rtol=1e-3)


def test_a_fit_leaves_the_model_as_it_was_also_an_interrupted_one():
    model = model_of(0.1)
    attraction = model.layers[0].kernel_regularizer
    weights = [id(w) for w in model.weights]

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, callbacks=[kc.callbacks.PenaltyRamp(3), Stop()], verbose=0)
    assert len(model.weights) == 5
    model.fit(X, Y, callbacks=[kc.callbacks.PenaltyRamp(3)], verbose=0)
    assert [id(w) for w in model.weights] == weights
    assert model.layers[0].kernel.regularizer is attraction
    task = np.mean((model.predict(X, verbose=0) - Y) ** 2)
    expected = task + float(attraction(model.layers[0].kernel))
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), expected, rtol=1e-4)


def test_other_kinds_of_regularizers_ramp_if_asked_for():
    model = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(3, bias_regularizer=keras.regularizers.L2(0.1))]
    )
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="no weight of model '.*' has a BinaryAttraction"):
        model.fit(X, Y, callbacks=[kc.callbacks.PenaltyRamp(2)], verbose=0)
    ramp = kc.callbacks.PenaltyRamp(2, kind=keras.regularizers.L2)
    model.fit(X, Y, callbacks=[ramp], verbose=0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`epochs` must be a positive integer"):
        kc.callbacks.PenaltyRamp(0)
    with pytest.raises(ValueError, match=r"`start` must be a number in \[0, 1\]"):
        kc.callbacks.PenaltyRamp(2, start=2)
    with pytest.raises(ValueError, match="`kind` must be a class"):
        kc.callbacks.PenaltyRamp(2, kind=keras.regularizers.L2())
