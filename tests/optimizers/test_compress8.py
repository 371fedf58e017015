"""Compress8: Dettmers's exchange of gradients in 8 bits, simulated."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.normal(size=(32, 3)).astype("float32")


def array(variable):
    return ops.convert_to_numpy(variable)


def dense(optimizer, **kwargs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile(optimizer, "mse", **kwargs)
    return model


def gradients(kernel, bias, x, y):
    """Of the mean squared error of a dense layer."""
    error = 2 * (x @ kernel + bias - y) / y.size
    return x.T @ error, error.sum(axis=0)


def in_8_bits(g):
    """Nearest value of the tree's table times the maximum, by brute force."""
    table = kc.quantizers.DynamicTree8().levels([1.0])[0].astype("float64")
    largest = np.abs(g).max()
    nearest = np.abs(g[..., None] / largest - table).argmin(axis=-1)
    return largest * table[nearest]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_dettmers_replicas_exchange_8_bit_gradients_and_average_them(jit_compile):
    model = dense(
        kc.optimizers.Compress8(keras.optimizers.SGD(0.1), replicas=4), jit_compile=jit_compile
    )
    kernel, bias = (array(w).astype("float64") for w in model.weights)
    model.fit(X, Y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    for update in range(2):
        exchanged = []
        for replica in range(4):
            part = slice(16 * update + 4 * replica, 16 * update + 4 * replica + 4)
            exchanged.append([in_8_bits(g) for g in gradients(kernel, bias, X[part], Y[part])])
        kernel = kernel - 0.1 * np.mean([g for g, _ in exchanged], axis=0)
        bias = bias - 0.1 * np.mean([g for _, g in exchanged], axis=0)
    np.testing.assert_allclose(array(model.layers[0].kernel), kernel, atol=1e-6)
    np.testing.assert_allclose(array(model.layers[0].bias), bias, atol=1e-6)
    assert int(model.optimizer.iterations) == 2


def test_dettmers_bytes_are_one_a_value_and_four_a_tensor_and_replica():
    model = dense(kc.optimizers.Compress8("sgd", replicas=4))
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    batches = 2 * 8
    assert model.optimizer.bytes_exchanged == batches * ((18 + 4) + (3 + 4))
    assert model.optimizer.bytes_float32 == batches * 4 * (18 + 3)


def test_dettmers_training_in_8_bits_is_about_as_good():
    """A linear problem with an exact solution, by Adam: both get there."""
    y = X @ RNG.normal(size=(6, 3)).astype("float32")
    losses = []
    for optimizer in (keras.optimizers.Adam(0.05), kc.optimizers.Compress8("adam")):
        optimizer.learning_rate = 0.05
        model = dense(optimizer)
        losses.append(model.fit(X, y, batch_size=16, epochs=150, verbose=0).history["loss"])
    plain, compressed = np.array(losses)
    assert plain[-1] < 1e-3 * plain[0] and compressed[-1] < 1e-3 * compressed[0]


@pytest.mark.parametrize(
    "inner",
    [
        lambda: keras.optimizers.Adam(0.01, clipnorm=1.0),
        lambda: keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5), momentum=0.9
        ),
    ],
    ids=["adam", "schedule"],
)
def test_state_and_configuration_survive_a_file(tmp_path, inner):
    model = dense(kc.optimizers.Compress8(inner(), replicas=2, name="eight"))
    model.fit(X, Y, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert loaded.optimizer.bytes_exchanged == model.optimizer.bytes_exchanged > 0
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(one), array(other))
    for again in (model, loaded):
        again.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        array(loaded.layers[0].kernel), array(model.layers[0].kernel), atol=1e-6
    )


def test_learning_rate_is_the_inner_optimizers():
    inner = keras.optimizers.SGD(0.1)
    optimizer = kc.optimizers.Compress8(inner)
    optimizer.learning_rate = 0.25
    assert float(inner.learning_rate) == float(optimizer.learning_rate) == 0.25
    model = dense(optimizer)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.fit(X, Y, epochs=2, callbacks=[halve], verbose=0)
    assert float(inner.learning_rate) == 0.0625


def test_an_optimizer_that_scales_the_loss_goes_around_it():
    optimizer = keras.optimizers.LossScaleOptimizer(kc.optimizers.Compress8("sgd"))
    model, plain = dense(optimizer), dense(kc.optimizers.Compress8("sgd"))
    for trained in (model, plain):
        trained.fit(X, Y, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        array(model.layers[0].kernel), array(plain.layers[0].kernel), atol=1e-6
    )


def test_embeddings_train():
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), keras.layers.Embedding(50, 4), keras.layers.Flatten()]
    )
    model.compile(kc.optimizers.Compress8(keras.optimizers.SGD(1.0)), "mse")
    before = array(model.layers[0].embeddings)
    model.fit(np.array([[1, 2], [2, 3]]), np.ones((2, 8), "float32"), verbose=0)
    moved = np.abs(array(model.layers[0].embeddings) - before).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), [1, 2, 3])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`replicas` must be a positive integer"):
        kc.optimizers.Compress8("sgd", replicas=0)
    inner = keras.optimizers.SGD(gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=3; leave one of them out"):
        kc.optimizers.Compress8(inner, replicas=2)
    with pytest.raises(ValueError, match="[Oo]ptimizer"):
        kc.optimizers.Compress8(3)
