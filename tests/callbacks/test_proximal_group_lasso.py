"""ProximalGroupLasso during `fit`."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(256, 12)).astype("float32")
Y = (X[:, :3] @ RNG.normal(size=(3, 5))).astype("float32")


def make(strength=0.05, groups="rows", **options):
    lasso = kc.regularizers.GroupLasso(groups, strength)
    layer = keras.layers.Dense(5, kernel_regularizer=lasso, name="fc", **options)
    return keras.Sequential([keras.Input((12,)), layer])


def kernel(model):
    return keras.ops.convert_to_numpy(model.layers[0].kernel)


def fit(model, callbacks, epochs=30):
    return model.fit(X, Y, batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.2, 120)),
    "adam_scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05)),
    "accumulation": lambda: keras.optimizers.SGD(0.2, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ssl_exact_zeros_after_a_fit(optimizer):
    """Wen et al. 2016: unused rows vanish, used ones stay."""
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(OPTIMIZERS[optimizer](), "mse")
    fit(model, [kc.callbacks.ProximalGroupLasso()])
    rows = np.abs(kernel(model)).sum(1)
    assert (rows[3:] == 0).all() and (rows[:3] > 0.1).all()


def test_penalty_in_the_loss_leaves_no_zero():
    model = make()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    fit(model, [])
    assert kernel(model).all()


@pytest.mark.parametrize("accumulation", [None, 4])
def test_a_fit_is_proximal_gradient_descent(accumulation):
    """Against the algorithm written out in numpy, batch by batch."""
    rate, strength = 0.1, 0.05
    keras.utils.set_random_seed(0)
    model = make(strength, use_bias=False)
    w = kernel(model).astype("float64")
    model.compile(keras.optimizers.SGD(rate, gradient_accumulation_steps=accumulation), "mse")
    model.fit(
        X, Y, batch_size=64, epochs=2, shuffle=False, verbose=0,
        callbacks=[kc.callbacks.ProximalGroupLasso(threshold=0)],
    )  # fmt: skip
    every = 64 * (accumulation or 1)
    for start in [*range(0, 256, every)] * 2:
        x, y = X[start : start + every], Y[start : start + every]
        w = w - rate * 2 / y.size * x.T @ (x @ w - y)
        w *= np.maximum(0, 1 - rate * strength * np.sqrt(5) / np.linalg.norm(w, axis=1))[:, None]
    np.testing.assert_allclose(kernel(model), w, atol=1e-5)


def test_groups_below_the_threshold_vanish_when_training_ends():
    model = make(strength=0.0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    weight = np.ones((12, 5), "float32")
    weight[3], weight[4] = 0.1, 0.2
    model.layers[0].kernel.assign(weight)
    fit(model, [kc.callbacks.ProximalGroupLasso(threshold=0.15)], epochs=1)
    weight[3] = 0.0
    np.testing.assert_array_equal(kernel(model), weight)
    with pytest.raises(ValueError, match="threshold"):
        kc.callbacks.ProximalGroupLasso(threshold=1.0)


def test_model_is_as_before_when_fit_ends():
    model = make(kernel_constraint="max_norm")
    model.compile("sgd", "mse")
    variable = model.layers[0].kernel
    before = variable.regularizer, variable.constraint
    history = fit(model, [kc.callbacks.ProximalGroupLasso("fc")], epochs=1)
    assert (variable.regularizer, variable.constraint) == before
    mse = float(np.mean((model.predict(X, verbose=0) - Y) ** 2))
    assert model.evaluate(X, Y, verbose=0) > mse
    assert np.isfinite(history.history["loss"]).all()
    assert "ProximalStep" not in str(model.get_config())


def test_interrupted_fit_can_be_taken_up():
    model = make()
    model.compile(keras.optimizers.SGD(0.1), "mse")

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, [kc.callbacks.ProximalGroupLasso(), Stop()])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    fit(model, [kc.callbacks.ProximalGroupLasso()])
    assert (kernel(model)[3:] == 0).all()
    assert isinstance(model.layers[0].kernel.regularizer, kc.regularizers.GroupLasso)
    assert model.layers[0].kernel.constraint is None


@pytest.mark.parametrize("first", [0, 1])
def test_together_with_magnitude_pruning(first):
    model = make(kernel_constraint="max_norm")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    both = [
        kc.callbacks.ProximalGroupLasso(),
        kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.8, begin_step=60)),
    ]
    fit(model, both[::-1] if first else both)
    mask = model.layers[0].kernel_constraint
    assert isinstance(mask, kc.pruning.PruningMask) and model.layers[0].kernel.constraint is mask
    assert isinstance(mask.constraint, keras.constraints.MaxNorm)
    assert (kernel(model)[3:] == 0).all() and (kernel(model) == 0).sum() >= 48


def test_models_without_group_lasso_are_refused():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(5, name="plain")])
    with pytest.raises(ValueError, match="GroupLasso"):
        kc.callbacks.ProximalGroupLasso().set_model(model)
    with pytest.raises(ValueError, match="'plain'"):
        kc.callbacks.ProximalGroupLasso(layers="plane").set_model(model)
