"""QuantDense: forms of the literature against numpy, its gradients, and how it is stored."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress import quantizers
from keras_compress.layers import BinaryDense, QuantDense
from keras_compress.layers.quantized_kernel import stored_form
from keras_compress.layers.stored_kernel import CodebookKernel, GridKernel
from tests.gradients import gradient

RNG = np.random.default_rng(0)


def run(layer, inputs, **kwargs):
    return ops.convert_to_numpy(layer(np.asarray(inputs, "float32"), **kwargs))


def built(n_in, units, **arguments):
    layer = QuantDense(units, **arguments)
    layer.build((None, n_in))
    layer.kernel.assign(0.4 * RNG.normal(size=(n_in, units)))
    return layer, ops.convert_to_numpy(layer.kernel)


def test_twn_output_is_the_ternary_product_times_the_scale():
    layer, w = built(30, 7, kernel_quantizer="ternary", use_bias=False)
    x = RNG.normal(size=(4, 30))
    kept = np.abs(w) > 0.7 * np.abs(w).mean()
    alpha = np.abs(w)[kept].mean()
    np.testing.assert_allclose(run(layer, x), alpha * (x @ (np.sign(w) * kept)), rtol=1e-4)


def test_dorefa_of_two_bits_each_is_an_integer_product():
    layer, w = built(
        30,
        7,
        kernel_quantizer=quantizers.DoReFaWeight(2),
        input_quantizer="dorefa_activation",
        use_bias=False,
    )
    x = RNG.uniform(-0.5, 1.5, size=(4, 30))
    weights = 2 * np.round(1.5 * np.tanh(w) / np.abs(np.tanh(w)).max() + 1.5) - 3
    outputs = run(layer, x) * 9
    np.testing.assert_allclose(outputs, np.round(3 * np.clip(x, 0, 1)) @ weights, atol=1e-4)


def test_horq_output_is_the_sum_over_orders_of_binary_products():
    layer, w = built(
        40,
        5,
        kernel_quantizer=quantizers.Sign("mean_abs"),
        input_quantizer=quantizers.ResidualSign(2, axis=0, ste="clip"),
        use_bias=False,
    )
    x = RNG.normal(size=(3, 40))
    rest, expected = x, 0
    for _ in range(2):
        sign, beta = np.where(rest >= 0, 1, -1), np.abs(rest).mean(axis=1, keepdims=True)
        expected = expected + beta * (sign @ np.where(w >= 0, 1, -1)) * np.abs(w).mean(axis=0)
        rest = rest - beta * sign
    np.testing.assert_allclose(run(layer, x), expected, rtol=1e-4, atol=1e-5)


def test_lin_input_gradient_uses_the_ternary_weights_and_the_kernel_gradient_does_not():
    layer, w = built(9, 5, kernel_quantizer=quantizers.StochasticTernary(seed=1), use_bias=False)
    x, upstream = RNG.normal(size=(4, 9)).astype("float32"), RNG.normal(size=(4, 5))
    upstream = upstream.astype("float32")
    grad = gradient(lambda x: ops.sum(layer(x) * upstream), x)
    ternary = np.sign(w) * (np.abs(w) > 0.5)
    np.testing.assert_allclose(grad, upstream @ ternary.T, rtol=1e-4, atol=1e-5)
    model = keras.Sequential([keras.Input((9,)), layer])
    model.compile(keras.optimizers.SGD(1e-3), loss=lambda t, y: ops.sum(y * t, axis=-1) * 4)
    model.fit(x, upstream, batch_size=4, verbose=0)
    step = (w - ops.convert_to_numpy(layer.kernel)) / 1e-3
    np.testing.assert_allclose(step, x.T @ upstream, rtol=1e-2, atol=2e-3)


def test_stochastic_kernel_draws_in_training_only_and_tracks_the_generator(tmp_path):
    quantizer = quantizers.StochasticTernary(seed=1)
    model = keras.Sequential([keras.Input((9,)), QuantDense(5, kernel_quantizer=quantizer)])
    x = RNG.normal(size=(3, 9)).astype("float32")
    assert (run(model, x, training=True) != run(model, x, training=True)).any()
    np.testing.assert_array_equal(run(model, x), run(model, x))
    (state,) = model.layers[0].non_trainable_variables
    model.compile("sgd", loss="mse", jit_compile=True)
    before = ops.convert_to_numpy(state).copy()
    model.fit(x, np.zeros((3, 5)), verbose=0)
    assert (ops.convert_to_numpy(state) != before).any()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(again, x), run(model, x))


def test_binary_dense_is_a_preset():
    binary = BinaryDense(6, scale="mean_abs")
    binary.build((None, 20))
    quant = QuantDense(6, kernel_quantizer=quantizers.Sign("mean_abs"), input_quantizer="sign")
    quant.build((None, 20))
    quant.kernel.assign(binary.kernel)
    x = RNG.normal(size=(4, 20))
    np.testing.assert_array_equal(run(quant, x), run(binary, x))
    assert isinstance(binary, QuantDense)
    assert quant.storage_bits() == binary.storage_bits() == 120 + 32 * 6 + 32 * 6


def test_without_quantizers_it_is_the_dense_layer():
    layer, w = built(12, 4)
    x = RNG.normal(size=(3, 12))
    np.testing.assert_allclose(run(layer, x), x @ w, rtol=1e-4, atol=1e-5)
    assert layer.storage_bits() == 32 * (48 + 4)
    with pytest.raises(ValueError, match="kernel_quantizer is None"):
        layer.kernel_codes()


@pytest.mark.parametrize("name", ["uniform", "ternary", "uniform_l2", "residual_sign"])
def test_from_layer_finds_the_scale_in_the_trained_kernel(name):
    dense = keras.layers.Dense(24)
    dense.build((None, 64))
    dense.kernel.assign(0.013 * RNG.normal(size=(64, 24)))
    layer = QuantDense.from_layer(dense, kernel_quantizer=name)
    kernel = ops.convert_to_numpy(dense.kernel)
    np.testing.assert_array_equal(layer.kernel, kernel)
    error = np.linalg.norm(layer.reconstruct_kernel() - kernel) / np.linalg.norm(kernel)
    assert error < {"uniform": 0.01, "residual_sign": 0.37}.get(name, 0.45)


def test_from_layer_brings_weights_into_the_range_of_fixed_levels():
    dense = keras.layers.Dense(24)
    dense.build((None, 64))
    kernel = 0.01 * RNG.normal(size=(64, 24)).astype("float32")
    dense.kernel.assign(kernel)
    for quantizer in (quantizers.Sign(), quantizers.StochasticTernary()):
        layer = QuantDense.from_layer(dense, kernel_quantizer=quantizer)
        np.testing.assert_allclose(layer.kernel, kernel / np.abs(kernel).max(), rtol=1e-6)


@pytest.mark.parametrize(
    "quantizer,form",
    [
        (quantizers.Sign(), GridKernel),
        (quantizers.Ternary(axis=-1), GridKernel),
        (quantizers.Uniform(8), GridKernel),
        (quantizers.DoReFaWeight(8), CodebookKernel),
        (quantizers.FixedPoint(12, 14), type(None)),
        (quantizers.PowerOfTwo(5), CodebookKernel),
        (quantizers.PowerOfTwo(4, terms=2), CodebookKernel),
        (quantizers.PowerOfTwo(4, terms=4), type(None)),
        (quantizers.DynamicTree8(), CodebookKernel),
        (quantizers.ResidualSign(3, axis=None), CodebookKernel),
    ],
    ids=lambda v: type(v).__name__,
)
def test_stored_form_holds_the_kernel_and_wider_ones_stay_float(quantizer, form):
    layer, _ = built(64, 32, kernel_quantizer=quantizer)
    stored = layer.export_form().stored_kernel
    assert type(stored) is form
    if stored is not None:
        np.testing.assert_array_equal(stored.dense(), layer.reconstruct_kernel())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_codebooks_of_channels_become_the_best_integers_up_to_127(order):
    codes = quantizers.ResidualSign(order, refine=True).encode(RNG.normal(size=(50, 6)))
    stored, kernel = stored_form(codes), codes.decode()
    for channel in range(6):
        table = codes.values[channel].astype("float64")
        steps = np.abs(table).max() / np.arange(1, 128)[:, None]
        errors = np.sum((np.round(table / steps) * steps - table) ** 2, axis=1)
        ints = np.round(table / stored.scale[channel])
        assert np.abs(ints).max() <= 127
        error = np.sum((ints * stored.scale[channel] - table) ** 2)
        assert error <= errors.min() + 1e-10
    np.testing.assert_allclose(stored.dense(), kernel, atol=np.abs(kernel).max() / 254)
    if order == 1:
        assert stored.bits == 2


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"kernel_quantizer": "tenary"}, "Did you mean 'ternary'"),
        ({"input_quantizer": "uniform"}, "would be one of the whole batch.*axis=0"),
        ({"input_quantizer": quantizers.Ternary()}, "got input_quantizer=Ternary with axis=None"),
        ({"kernel_quantizer": quantizers.Uniform(4, axis=0)}, "Use axis=-1, or axis=None"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        QuantDense(4, **arguments)
