"""ShiftAdaMax: AdaMax of BNN, by shifts."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)


def ap2(x):
    with np.errstate(divide="ignore"):
        return np.where(x == 0, 0.0, np.sign(x) * np.exp2(np.round(np.log2(np.abs(x)))))


@pytest.mark.parametrize(
    "arguments", [{}, {"learning_rate": 0.02, "beta_1": 0.9, "beta_2": 0.999}], ids=["paper", "any"]
)
def test_bnn_shift_adamax_is_the_formula_with_powers_of_two(arguments):
    rate = arguments.get("learning_rate", 2**-10)
    rate_1 = ap2(1 - arguments.get("beta_1", 1 - 2**-3))
    rate_2 = ap2(1 - arguments.get("beta_2", 1 - 2**-10))
    weight = RNG.normal(size=(6, 5))
    variable = keras.Variable(weight.astype("float32"))
    optimizer = kc.optimizers.ShiftAdaMax(**arguments)
    m, u = np.zeros_like(weight), np.zeros_like(weight)
    for t in range(1, 12):
        g = RNG.normal(size=weight.shape).astype("float32")
        optimizer.apply([keras.ops.convert_to_tensor(g)], [variable])
        m = m + rate_1 * (g - m)
        u = np.maximum(u - rate_2 * u, np.abs(g))
        weight = weight - ap2(rate / (1 - (1 - rate_1) ** t)) * m * ap2(1 / (u + 1e-7))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), weight, rtol=1e-5, atol=1e-6)


def test_bnn_shift_adamax_defaults_are_powers_of_two_as_in_the_paper():
    config = kc.optimizers.ShiftAdaMax().get_config()
    factors = [config["learning_rate"], 1 - config["beta_1"], 1 - config["beta_2"]]
    np.testing.assert_array_equal(factors, [2.0**-10, 2.0**-3, 2.0**-10])


def test_bnn_shift_adamax_first_step_is_a_power_of_two_times_the_gradient():
    variable = keras.Variable(np.zeros(8, "float32"))
    g = np.array([1.5, -3.0, 0.7, 100.0, -0.01, 5.0, 1e-4, 0.0], "float32")
    kc.optimizers.ShiftAdaMax().apply([keras.ops.convert_to_tensor(g)], [variable])
    step = -keras.ops.convert_to_numpy(variable)
    exponents = np.log2(step[:-1] / g[:-1])
    np.testing.assert_allclose(exponents, np.round(exponents), atol=1e-5)
    # Within half an octave of the step of AdaMax itself.
    assert (np.abs(np.log2(np.abs(step[:-1]) * 2**10)) <= 0.5 + 1e-5).all() and step[-1] == 0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_bnn_shift_adamax_trains(tmp_path, jit_compile):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)).astype("float32")
    y = x @ rng.normal(size=(6, 1)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(kc.optimizers.ShiftAdaMax(2**-5), "mse", jit_compile=jit_compile)
    history = model.fit(x, y, epochs=60, verbose=0).history["loss"]
    assert history[-1] < 0.01 * history[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`beta_1` must be a number in \[0"):
        kc.optimizers.ShiftAdaMax(beta_1=1.0)
    with pytest.raises(ValueError, match="`beta_2`"):
        kc.optimizers.ShiftAdaMax(beta_2=-0.1)
