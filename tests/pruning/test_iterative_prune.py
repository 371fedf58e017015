"""`iterative_prune`: rounds of pruning and retraining."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 12)).astype("float32")
DATA = (X, X[:, :1] - X[:, 1:2])
prune = kc.pruning.iterative_prune


def net(optimizer="adam", rate=0.5):
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(10, activation="relu", name="first"),
            layers.Dropout(rate, name="dropped"),
            layers.Activation("linear"),
            layers.Dense(1, name="last"),
            layers.Dropout(rate / 2, name="end"),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def kernels(model):
    return [model.get_layer(name).get_weights()[0] for name in ("first", "last")]


class Zeros(keras.callbacks.Callback):
    """What is zero at the begin and the end of each fit, and the kernels at the begin."""

    def __init__(self):
        super().__init__()
        self.begin, self.end, self.values, self.rates = [], [], [], []

    def on_train_begin(self, logs=None):
        self.values.append([k.copy() for k in kernels(self.model)])
        self.begin.append([k == 0 for k in kernels(self.model)])
        self.rates.append([self.model.get_layer(n).rate for n in ("dropped", "end")])

    def on_train_end(self, logs=None):
        self.end.append([k == 0 for k in kernels(self.model)])


def test_han_zeros_stay_through_all_rounds_and_survivors_train_on_from_their_values():
    model, zeros = net(), Zeros()
    before = model.get_weights()
    pruned = prune(model, DATA, (0.5, 0.8, 0.9), 2, callbacks=[zeros], verbose=0)
    for step, share in enumerate((0.5, 0.8, 0.9)):
        for begin, end in zip(zeros.begin[step], zeros.end[step], strict=True):
            np.testing.assert_array_equal(begin, end)
            assert begin.sum() == np.floor(share * begin.size + 0.5)
    for first, second in zip(zeros.end, zeros.begin[1:], strict=False):
        for a, b in zip(first, second, strict=True):
            assert (b >= a).all()
    # Not initialised anew: the survivors of the first round are as they were.
    for old, new in zip(kernels(model), zeros.values[0], strict=True):
        np.testing.assert_array_equal(new[new != 0], old[new != 0])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    final = kernels(pruned)[0]
    assert (final[final != 0] != kernels(model)[0][final != 0]).any()


def test_without_training_it_is_magnitude_pruning_at_the_last_step():
    model = net()
    pruned = prune(model, DATA, (0.3, 0.6, 0.75), 0)
    for old, new in zip(kernels(model), kernels(pruned), strict=True):
        number = int(np.floor(0.75 * old.size + 0.5))
        limit = np.sort(np.abs(old).ravel())[number]
        np.testing.assert_array_equal(new, np.where(np.abs(old) >= limit, old, 0))


def test_han_dropout_falls_with_the_connections_that_read_it():
    zeros = Zeros()
    pruned = prune(net(), DATA, (0.5, 0.8), 1, callbacks=[zeros], verbose=0)
    # D_o sqrt(C_r / C_o), of the rate at first; what no layer reads stays.
    np.testing.assert_allclose(
        zeros.rates, [[0.5 * np.sqrt(0.5), 0.25], [0.5 * np.sqrt(0.2), 0.25]], rtol=1e-6
    )
    assert kc.pruning.strip(pruned).get_layer("dropped").rate == zeros.rates[-1][0]
    only_first = prune(net(), DATA, (0.5,), 0, layers="first")
    assert only_first.get_layer("dropped").rate == 0.5


def test_retraining_recovers_and_dead_neurons_can_be_removed():
    keras.utils.set_random_seed(0)
    model = net(keras.optimizers.Adam(0.02), 0.0)
    model.fit(*DATA, epochs=60, verbose=0)
    trained, rest = (prune(model, DATA, (0.6, 0.8), e, verbose=0) for e in (30, 0))
    losses = [m.evaluate(*DATA, verbose=0) for m in (trained, rest)]
    assert losses[0] < 0.3 * losses[1]
    plain = kc.pruning.strip(trained)
    small = kc.pruning.remove_dead(plain)
    assert small.get_layer("first").units < 10
    np.testing.assert_allclose(small.predict(X, verbose=0), plain.predict(X, verbose=0), atol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"steps\[1\]` must be a number in \(0.5, 1\)"):
        prune(net(), DATA, (0.5, 0.4))
    for steps in ((), 0.5, "0.5"):
        with pytest.raises(ValueError, match="`steps` must be the shares of zeros"):
            prune(net(), DATA, steps)
    with pytest.raises(ValueError, match="`epochs` must be an integer from 0"):
        prune(net(), DATA, epochs=-1)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="is not compiled"):
        prune(model, DATA)
