"""BinaryDense: BNN, BinaryConnect and XNOR-Net forms against bit counts and numpy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import BinaryDense
from keras_compress.quantizers import Sign
from tests.gradients import gradient

RNG = np.random.default_rng(0)
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="conversion needs the TensorFlow backend"
)


def run(layer, inputs, **kwargs):
    return ops.convert_to_numpy(layer(np.asarray(inputs, "float32"), **kwargs))


@pytest.mark.parametrize("n_in", [63, 64])
def test_bnn_outputs_are_integers_of_the_parity_of_the_input_size(n_in):
    layer = BinaryDense(50, use_bias=False)
    outputs = run(layer, RNG.normal(size=(40, n_in)))
    np.testing.assert_array_equal(outputs, np.round(outputs))
    assert np.abs(outputs).max() <= n_in
    assert set((outputs.astype(int) % 2).ravel()) == {n_in % 2}


def test_bnn_equals_xnor_and_popcount_on_bits():
    n_in, units = 77, 9
    layer, inputs = BinaryDense(units, use_bias=False), RNG.normal(size=(6, n_in))
    outputs = run(layer, inputs)
    weights = np.packbits(ops.convert_to_numpy(layer.kernel).T >= 0, axis=1)
    bits = np.packbits(inputs >= 0, axis=1)
    differing = np.bitwise_count(bits[:, None, :] ^ weights[None]).sum(axis=-1, dtype=int)
    np.testing.assert_array_equal(outputs, n_in - 2 * differing)


def test_bnn_latent_weights_stay_in_the_unit_interval_and_move():
    model = keras.Sequential([keras.Input((16,)), BinaryDense(8), BinaryDense(4)])
    model.compile(keras.optimizers.SGD(5.0), loss="mse")
    before = [ops.convert_to_numpy(layer.kernel) for layer in model.layers]
    x, y = RNG.normal(size=(64, 16)), 20 * RNG.normal(size=(64, 4))
    model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    for layer, old in zip(model.layers, before, strict=True):
        kernel = ops.convert_to_numpy(layer.kernel)
        assert np.abs(kernel).max() == 1
        assert (np.sign(kernel) != np.sign(old)).any()


def test_bnn_without_the_constraint_latent_weights_leave_it():
    model = keras.Sequential([keras.Input((16,)), BinaryDense(4, kernel_constraint=None)])
    model.compile(keras.optimizers.SGD(5.0), loss="mse")
    model.fit(RNG.normal(size=(32, 16)), RNG.normal(size=(32, 4)), verbose=0)
    assert np.abs(ops.convert_to_numpy(model.layers[0].kernel)).max() > 1


def test_bnn_gradients_of_input_and_kernel():
    """Against the chain rule written out: g_x = (g B^T) 1[|x| <= 1], g_w = (sign(x)^T g) 1[..]."""
    layer = BinaryDense(5, use_bias=False)
    layer.build((None, 7))
    layer.kernel.assign(RNG.uniform(-0.9, 0.9, (7, 5)))
    x = RNG.uniform(-2, 2, (4, 7)).astype("float32")
    upstream = RNG.normal(size=(4, 5)).astype("float32")
    binary = np.where(ops.convert_to_numpy(layer.kernel) >= 0, 1, -1)
    grad = gradient(lambda x: ops.sum(layer(x) * upstream), x)
    np.testing.assert_allclose(grad, (upstream @ binary.T) * (np.abs(x) <= 1), rtol=1e-5, atol=1e-6)
    signs, old = np.where(x >= 0, 1, -1), ops.convert_to_numpy(layer.kernel).copy()
    model = keras.Sequential([keras.Input((7,)), layer])
    model.compile(keras.optimizers.SGD(1e-3), loss=lambda t, y: ops.sum(y * t, axis=-1) * 4)
    model.fit(x, upstream, batch_size=4, verbose=0)
    step = (old - ops.convert_to_numpy(layer.kernel)) / 1e-3
    np.testing.assert_allclose(step, signs.T @ upstream, rtol=1e-3, atol=1e-3)


def test_binaryconnect_draws_in_training_only_and_saves_the_generator(tmp_path):
    model = keras.Sequential(
        [keras.Input((30,)), BinaryDense(20, input_quantizer=None, stochastic=True, seed=5)]
    )
    x = RNG.normal(size=(3, 30)).astype("float32")
    layer = model.layers[0]
    assert len(layer.non_trainable_variables) == 1
    deterministic = x @ np.where(ops.convert_to_numpy(layer.kernel) >= 0, 1, -1)
    np.testing.assert_allclose(run(model, x, training=False), deterministic, atol=1e-4)
    draws = [run(model, x, training=True) for _ in range(2)]
    assert (draws[0] != draws[1]).any()
    model.compile("sgd", loss="mse", jit_compile=True)
    state = ops.convert_to_numpy(layer.non_trainable_variables[0]).copy()
    model.fit(x, deterministic, verbose=0)
    assert (ops.convert_to_numpy(layer.non_trainable_variables[0]) != state).any()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(again, x), run(model, x))


def test_stochastic_input_quantizer_is_tracked_and_draws():
    layer = BinaryDense(20, input_quantizer=Sign(stochastic=True, seed=1))
    x = RNG.uniform(-1, 1, size=(3, 30))
    assert (run(layer, x, training=True) != run(layer, x, training=True)).any()
    np.testing.assert_array_equal(run(layer, x), run(layer, x))
    assert len(layer.non_trainable_variables) == 1


def test_xnor_equals_dense_for_inputs_and_weights_of_one_magnitude():
    layer = BinaryDense(6, scale="mean_abs", input_scale="xnor")
    layer.build((None, 12))
    layer.kernel.assign(0.25 * np.where(RNG.normal(size=(12, 6)) >= 0, 1, -1))
    # The magnitude may differ from row to row.
    x = np.array([[3.0], [0.5]]) * np.where(RNG.normal(size=(2, 12)) >= 0, 1, -1)
    expected = x @ ops.convert_to_numpy(layer.kernel)
    np.testing.assert_allclose(run(layer, x), expected, rtol=1e-5, atol=1e-5)


def test_xnor_input_scale_is_the_mean_magnitude_of_each_row():
    x = RNG.normal(size=(2, 5, 12))
    layer = BinaryDense(6, input_scale="xnor", use_bias=False)
    outputs = run(layer, x)
    binary = np.where(ops.convert_to_numpy(layer.kernel) >= 0, 1, -1)
    expected = np.where(x >= 0, 1, -1) @ binary * np.abs(x).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_bwn_from_layer_approximates_the_trained_layer():
    dense = keras.layers.Dense(32, activation="tanh")
    x = RNG.normal(size=(50, 256)).astype("float32")
    expected = ops.convert_to_numpy(dense(x))
    layer = BinaryDense.from_layer(dense)
    np.testing.assert_array_equal(layer.kernel, dense.kernel)
    assert layer.input_quantizer is None and layer.kernel_quantizer.scale == "mean_abs"
    correlation = np.corrcoef(run(layer, x).ravel(), expected.ravel())[0, 1]
    # sign(w) of a uniform w correlates with it by sqrt(3) / 2.
    assert correlation > 0.8


def test_from_layer_without_scale_keeps_signs_in_the_unit_interval():
    dense = keras.layers.Dense(8)
    dense.build((None, 16))
    dense.kernel.assign(3 * RNG.normal(size=(16, 8)))
    layer = BinaryDense.from_layer(dense, scale=None, input_quantizer="sign")
    latent, kernel = ops.convert_to_numpy(layer.kernel), ops.convert_to_numpy(dense.kernel)
    assert np.abs(latent).max() == 1
    np.testing.assert_allclose(latent * np.abs(kernel).max(), kernel, rtol=1e-5)
    dense.kernel.assign(np.zeros((16, 8)))
    assert not ops.convert_to_numpy(BinaryDense.from_layer(dense, scale=None).kernel).any()


def test_half_precision_does_not_flip_tiny_weights():
    layer = BinaryDense(1, use_bias=False, dtype="mixed_float16")
    layer.build((None, 2))
    layer.kernel.assign([[-1e-12], [1e-12]])
    np.testing.assert_array_equal(run(layer, [[1.0, -1.0]]), [[-2.0]])


def test_storage_and_macs():
    layer = BinaryDense(10, scale="mean_abs")
    layer.build((None, 100))
    assert layer.storage_bits() == 100 * 10 + 32 * 10 + 32 * 10
    assert layer.macs((None, 7, 100)) == 7 * 100 * 10


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"input_scale": "mean"}, "`input_scale` must be one of None, 'xnor'"),
        ({"input_scale": "xnor", "input_quantizer": None}, "Give input_quantizer='sign'"),
        ({"scale": "max"}, "`scale` must be one of"),
        ({"ste": "scaled"}, "Give scale='mean_abs'"),
        ({"input_quantizer": "sgn"}, "Did you mean 'sign'"),
        ({"input_quantizer": Sign("mean_abs")}, "input_scale='xnor'"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        BinaryDense(4, **arguments)


@on_tensorflow
@pytest.mark.parametrize("quantize", [None, "dynamic", "int8"])
def test_export_holds_the_binary_weights_exactly_and_no_quantizer_of_them(quantize):
    """A kernel too large for the converter to fold its sign, behind a reshape."""
    from keras_compress.export import to_tflite

    model = keras.Sequential([keras.Input((16, 32)), keras.layers.Flatten()])
    model.add(BinaryDense(64, scale="mean_abs"))
    layer = model.layers[-1]
    x = RNG.normal(size=(20, 16, 32)).astype("float32")
    lite = to_tflite(model, quantize=quantize, calibration=x)
    kernel_ops = [op for op in lite.ops if op not in ("QUANTIZE", "DEQUANTIZE", "RESHAPE")]
    # Weights left to LiteRT's rounding of inputs multiply 0 and 1: see `export.signs`.
    halves = quantize != "int8"
    signs = "CAST" if halves else "SELECT_V2"
    assert kernel_ops == ["GREATER_EQUAL", signs, "FULLY_CONNECTED"]
    stored = stored_kernel(lite, (64, 512)) / (2 if halves else 1)
    np.testing.assert_allclose(stored, layer.reconstruct_kernel().T, rtol=1e-6)


def stored_kernel(lite, shape):
    """Weights of a .tflite as the floats that they stand for."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=lite.content)
    interpreter.allocate_tensors()
    (detail,) = [d for d in interpreter.get_tensor_details() if tuple(d["shape"]) == shape]
    values = interpreter.get_tensor(detail["index"])
    if values.dtype == np.float32:
        return values
    # The converter's int8 has the step max / 127; ours is the level itself.
    step = int(np.abs(values).max())
    assert step in (1, 127) and set(np.unique(values).tolist()) == {-step, step}
    return (values // step) * (detail["quantization_parameters"]["scales"] * step)[:, None]
