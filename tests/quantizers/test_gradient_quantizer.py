"""GradientQuantizer, and DoReFaGradient in it."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress import export, quantizers
from keras_compress.quantizers import DoReFaGradient, DynamicTree8, GradientQuantizer
from tests.gradients import gradient
from tests.quantizers.common import normal, values


def quantize_k(r, k):
    return np.round((2**k - 1) * r) / (2**k - 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("shape", [(5, 40), (3, 4, 4, 6)])
def test_dorefa_gradient_is_the_formula_of_the_paper_without_noise(bits, shape):
    g = normal(*shape) * 10.0 ** np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    m = np.abs(g).max(axis=tuple(range(1, len(shape))), keepdims=True).astype("float64")
    unit = g / (2 * m) + 0.5
    expected = 2 * m * (quantize_k(unit, bits) - 0.5)
    outputs = values(DoReFaGradient(bits), g)
    # A position half way between levels may fall to either side.
    away = np.abs((2**bits - 1) * unit % 1 - 0.5) > 1e-4
    np.testing.assert_allclose((outputs / m)[away], (expected / m)[away], atol=1e-6)


@pytest.mark.parametrize("bits", [2, 6])
def test_dorefa_gradient_draws_are_levels_whose_mean_is_the_gradient(bits):
    sample = np.linspace(-1, 1, 41) * 3
    g = np.tile(sample, (20000, 1))
    draws = values(DoReFaGradient(bits, seed=1), g, training=True)
    levels = 3 * (2 * np.arange(2**bits) / (2**bits - 1) - 1)
    assert np.abs(np.unique(draws)[:, None] - levels).min(axis=1).max() < 1e-5
    # To 1 % of the largest: the standard error is a fifth of that.
    np.testing.assert_allclose(draws.mean(axis=0), sample, atol=0.03)


def test_dorefa_gradient_codes_are_the_values():
    g = normal(6, 10)
    codes = DoReFaGradient(3).encode(g)
    assert set(codes.ints.ravel()) <= {-7, -5, -3, -1, 1, 3, 5, 7}
    np.testing.assert_array_equal(codes.decode(), values(DoReFaGradient(3), g))


def test_dorefa_gradient_of_zero_stays_zero():
    g = np.stack([np.zeros(5), np.ones(5)])
    np.testing.assert_array_equal(values(DoReFaGradient(2), g, training=True), g)


@pytest.mark.parametrize("training", [True, False])
def test_dorefa_gradient_leaves_the_forward_pass_unchanged(training):
    x = normal(4, 7)
    layer = GradientQuantizer(DoReFaGradient(2))
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x, training=training)), x)


@pytest.mark.parametrize(
    "quantizer", [DynamicTree8(), quantizers.FixedPoint(8, 4), quantizers.PowerOfTwo(4)]
)
def test_gradient_is_the_quantised_one(quantizer):
    x, upstream = normal(4, 7), normal(4, 7, seed=1)
    layer = GradientQuantizer(quantizer)
    layer.build(x.shape)
    got = gradient(lambda x: ops.sum(layer(x, training=True) * upstream), x)
    np.testing.assert_array_equal(got, quantizer.decode(quantizer.encode(upstream)))
    got = gradient(lambda x: ops.sum(layer(x, training=False) * upstream), x)
    np.testing.assert_array_equal(got, upstream)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_kernel_moves_by_the_quantised_gradient_and_draws_anew_each_step(jit_compile):
    """One SGD step is `x^T Q(g)`, with Q(g) on the levels of each sample."""
    layer = GradientQuantizer(DoReFaGradient(2, seed=5))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, use_bias=False), layer])
    x = np.eye(4, dtype="float32")
    # With one-hot inputs and a constant loss gradient each row of the kernel moves by Q(g).
    target = normal(4, 6, seed=2)

    def loss(y_true, y_pred):
        return ops.sum(y_true * y_pred)

    model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=jit_compile)
    moves = []
    for _ in range(3):
        before = ops.convert_to_numpy(model.layers[0].kernel).copy()
        model.fit(x, target, batch_size=4, shuffle=False, verbose=0)
        moves.append(before - ops.convert_to_numpy(model.layers[0].kernel))
    m = np.abs(target).max(axis=1, keepdims=True)
    for move in moves:
        units = move / m
        nearest = np.abs(units[..., None] - np.array([-1, -1 / 3, 1 / 3, 1])).min(axis=-1)
        assert nearest.max() < 1e-5 and np.abs(units - target / m).max() < 2 / 3 + 1e-5
    assert np.abs(moves[0] - moves[1]).max() > 0.1 and np.abs(moves[1] - moves[2]).max() > 0.1


def test_half_precision_gradients():
    upstream = normal(4, 7)
    layer = GradientQuantizer(DynamicTree8(), dtype="float16")

    def loss(x):
        return ops.sum(ops.cast(layer(ops.cast(x, "float16"), training=True), "float32") * upstream)

    exact = upstream.astype("float16").astype("float32")
    expected = DynamicTree8().decode(DynamicTree8().encode(exact))
    np.testing.assert_allclose(gradient(loss, normal(4, 7, seed=1)), expected, rtol=1e-3)


def test_model_file_keeps_the_quantizer(tmp_path):
    layer = GradientQuantizer(DoReFaGradient(3, seed=2))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), layer])
    model.compile("sgd", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 2)), batch_size=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").layers[-1]
    assert again.quantizer.get_config() == layer.quantizer.get_config()
    # Four steps have drawn, and the layer holds the generator's state as its own.
    (state,) = layer.non_trainable_variables
    assert ops.convert_to_numpy(state)[1] == 4


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="export runs on TensorFlow")
def test_exported_model_has_nothing_of_it():
    dense, x = keras.layers.Dense(3), normal(5, 4)
    plain = keras.Sequential([keras.Input((4,)), dense])
    model = keras.Sequential([keras.Input((4,)), dense, GradientQuantizer(DoReFaGradient(6))])
    lite, expected = export.to_tflite(model), export.to_tflite(plain)
    assert lite.ops == expected.ops
    np.testing.assert_array_equal(lite.predict(x), expected.predict(x))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`bits` must be an integer from 1 to 8"):
        DoReFaGradient(9)
    with pytest.raises(ValueError, match="quantizer=None"):
        GradientQuantizer(None)
    assert type(quantizers.get("dorefa_gradient")) is DoReFaGradient
