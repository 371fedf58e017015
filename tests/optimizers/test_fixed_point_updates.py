"""FixedPointUpdates: Gupta et al.'s training with weights in fixed point."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.optimizers import FixedPointUpdates
from keras_compress.quantizers import FixedPoint

RNG = np.random.default_rng(0)
EPS = 2.0**-8


def apply(optimizer, gradient, variable):
    optimizer.apply([ops.convert_to_tensor(np.asarray(gradient, "float32"))], [variable])
    return ops.convert_to_numpy(variable)


def linear_model(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile(optimizer, "mse", **options)
    return model


def data(rows=64):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 6)).astype("float32")
    return x, x @ rng.normal(size=(6, 3)).astype("float32")


def on_grid(model, frac=8):
    return all(
        (np.asarray(ops.convert_to_numpy(w), "float64") * 2**frac % 1 == 0).all()
        for w in model.trainable_weights
    )


def test_gupta_nearest_is_the_rounded_and_saturated_step():
    weight = RNG.uniform(-1, 1, size=50).astype("float32")
    gradient = RNG.normal(size=50).astype("float32")
    variable = keras.Variable(weight)
    optimizer = FixedPointUpdates(keras.optimizers.SGD(0.5), FixedPoint(8, 6))
    expected = np.clip(np.round((weight - 0.5 * gradient) * 64) / 64, -2, 2 - 1 / 64)
    np.testing.assert_array_equal(apply(optimizer, gradient, variable), expected)
    # Saturation at both ends.
    ends = apply(optimizer, np.where(gradient > 0, 100, -100), variable)
    np.testing.assert_array_equal(ends, np.where(gradient > 0, -2, 2 - 1 / 64))


def test_gupta_small_updates_never_move_a_weight_if_rounded_to_the_nearest():
    variable = keras.Variable(np.full(1000, 3 * EPS, "float32"))
    optimizer = FixedPointUpdates(keras.optimizers.SGD(1.0), FixedPoint(16, 8))
    for _ in range(50):
        assert (apply(optimizer, np.full(1000, -0.1 * EPS), variable) == 3 * EPS).all()


def test_gupta_small_updates_move_a_weight_by_the_right_mean_if_rounded_stochastically():
    variable = keras.Variable(np.zeros(5000, "float32"))
    quantizer = FixedPoint(16, 8, "stochastic", seed=1)
    optimizer = FixedPointUpdates(keras.optimizers.SGD(1.0), quantizer)
    for _ in range(50):
        weights = apply(optimizer, np.full(5000, -0.1 * EPS), variable)
    assert (weights / EPS % 1 == 0).all() and len(np.unique(weights)) > 5
    # The standard error of the mean is 0.03 steps.
    assert abs(weights.mean() - 5 * EPS) < 0.15 * EPS


@pytest.mark.parametrize("rounding,low,high", [("nearest", 0, 0.5), ("stochastic", 0.85, 1)])
def test_gupta_stochastic_rounding_trains_digits_at_8_bits_after_the_point_and_nearest_fails(
    rounding, low, high
):
    """All numbers in fixed point: weights, inputs, gradients and updates."""
    (x, y), (x_test, y_test) = kc.datasets.digits()
    keras.utils.set_random_seed(0)

    def fixed():
        return FixedPoint(16, 8, rounding)

    def dense(units):
        return kc.layers.QuantDense(
            units, kernel_quantizer=fixed(), input_quantizer=fixed(), grad_quantizer=fixed()
        )

    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            dense(32),
            keras.layers.ReLU(),
            dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = FixedPointUpdates(keras.optimizers.SGD(0.02), fixed())
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=32, epochs=20, verbose=0)
    assert on_grid(model)
    assert low <= model.evaluate(x_test, y_test, verbose=0)[1] <= high


@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"steps_per_execution": 3}])
def test_every_variable_is_on_the_grid_after_a_compiled_step(inner, options):
    model = linear_model(FixedPointUpdates(inner, FixedPoint(16, 8, "stochastic")), **options)
    x, y = data()
    checked = []
    on_epoch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: checked.append(on_grid(model))
    )
    model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[on_epoch])
    assert checked == [True] * 3
    assert int(model.optimizer.iterations) == 12
    # One generator draws once for each of the two variables.
    assert ops.convert_to_numpy(model.optimizer.variables[-1])[1] == 24


def test_everything_else_is_the_inner_optimizer():
    """On a grid as fine as float32 the weights are those of the inner optimizer alone."""
    x, y = data()
    results = []
    for wrap in (True, False):
        schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 4, 0.5)
        inner = keras.optimizers.Adam(schedule, clipnorm=0.5)
        optimizer = FixedPointUpdates(inner, FixedPoint(24, 20)) if wrap else inner
        model = linear_model(optimizer)
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for wrapped, plain in zip(*results, strict=True):
        np.testing.assert_allclose(wrapped, plain, atol=8 * 2.0**-20)


def test_learning_rate_passes_through():
    optimizer = FixedPointUpdates(keras.optimizers.SGD(0.5), FixedPoint(16, 8))
    model = linear_model(optimizer)
    rate = keras.callbacks.LearningRateScheduler(lambda epoch: 0.25)
    model.fit(*data(), epochs=1, verbose=0, callbacks=[rate])
    assert float(optimizer.learning_rate) == float(optimizer.inner_optimizer.learning_rate) == 0.25


def test_saved_training_goes_on_where_it_was(tmp_path):
    x, y = data()
    quantizer = FixedPoint(16, 8, "stochastic", seed=4)
    model = linear_model(FixedPointUpdates(keras.optimizers.Adam(0.01), quantizer))
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for each in (model, again):
        each.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    # Moments and draws went on, or the weights would differ by steps.
    for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_constraints_and_moving_averages_end_on_the_grid():
    inner = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3, kernel_constraint="unit_norm")]
    )
    model.compile(FixedPointUpdates(inner, FixedPoint(16, 8)), "mse")
    model.fit(*data(), batch_size=16, epochs=2, verbose=0)
    assert on_grid(model)
    norms = np.linalg.norm(ops.convert_to_numpy(model.layers[0].kernel), axis=0)
    assert (np.abs(norms - 1) < 0.2).all()


def test_mixed_precision_wraps_it():
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(3, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((6,)), layer])
    optimizer = FixedPointUpdates(keras.optimizers.SGD(0.05), FixedPoint(16, 8, "stochastic"))
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0), "mse")
    losses = model.fit(*data(), batch_size=16, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0] and on_grid(model)


@pytest.mark.parametrize("quantizer", [None, "uniform", kc.quantizers.Sign()])
def test_other_quantizers_are_refused(quantizer):
    with pytest.raises(ValueError, match="must be a kc.quantizers.FixedPoint"):
        FixedPointUpdates("sgd", quantizer)
