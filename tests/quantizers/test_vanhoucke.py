"""Vanhoucke et al.: 8-bit weights and activations, int32 sums, in numpy and in LiteRT."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.quantizers import Uniform, UnitUniform
from tests.quantizers.common import normal, values

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)


def sigmoid_outputs(*shape, seed=3):
    """Activations as the paper has them: over all of [0, 1]."""
    x = np.random.default_rng(seed).uniform(size=shape).astype("float32")
    x[0, :2] = 0, 1
    return x


def dense_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(16, name="fc")])
    model.get_layer("fc").bias.assign(normal(16))
    return model


def test_vanhoucke_error_of_an_activation_is_at_most_1_in_510():
    a = sigmoid_outputs(50, 40)
    rounded = values(UnitUniform(8), a)
    np.testing.assert_allclose(rounded, np.round(255 * a.astype("float64")) / 255, atol=1e-6)
    assert np.abs(rounded - a).max() <= 1 / 510 * (1 + 1e-5)


def test_vanhoucke_layer_is_a_sum_of_integers():
    """The float simulation equals int32 sums of uint8 activations and int8 weights."""
    fc, x = dense_model().get_layer("fc"), sigmoid_outputs(20, 64)
    layer = kc.layers.QuantDense.from_layer(
        fc, kernel_quantizer=Uniform(8, axis=None), input_quantizer=UnitUniform(8)
    )
    codes = layer.kernel_codes()
    step = float(codes.scale) / 255
    bias = np.round(ops.convert_to_numpy(fc.bias) / step).astype("int32")
    sums = np.round(255 * x).astype("int32") @ codes.ints.astype("int32") + bias
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), sums * step, atol=step)


def dense_operation(interpreter):
    """Inputs and outputs of the one dense operation of a file: `(values, scales, zero point)`."""
    (op,) = [o for o in interpreter._get_ops_details() if o["op_name"] == "FULLY_CONNECTED"]
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    for index in (*op["inputs"], *op["outputs"]):
        grid = details[index]["quantization_parameters"]
        zero = int(grid["zero_points"][0])
        yield interpreter.get_tensor(index), grid["scales"].astype("float64"), zero


@on_tensorflow
def test_vanhoucke_int32_accumulation_of_the_file_in_numpy():
    x = sigmoid_outputs(200, 64)
    lite = kc.export.to_tflite(dense_model(), quantize="int8", calibration=x)
    interpreter = lite.interpreter(delegate=False, preserve=True)
    for row in x[:50]:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        inputs, kernel, bias, outputs = dense_operation(interpreter)
        assert [t[0].dtype.name for t in (inputs, kernel, bias, outputs)] == [
            "int8",
            "int8",
            "int32",
            "int8",
        ]
        np.testing.assert_allclose(bias[1], inputs[1] * kernel[1], rtol=1e-6)
        sums = (inputs[0].astype("int32") - inputs[2]) @ kernel[0].astype("int32").T + bias[0]
        steps = sums * (inputs[1] * kernel[1] / outputs[1])
        expected = np.clip(np.round(steps) + outputs[2], -128, 127)
        # Where the quotient is no tie, there is one integer to round to.
        clear = np.abs(steps - np.floor(steps) - 0.5) > 1e-4
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(outputs[0][clear], expected[clear])


@on_tensorflow
def test_vanhoucke_simulated_and_tflite_outputs_differ_by_one_step_at_most():
    # No more samples than calibration reads: the range is that of all outputs.
    model, x = dense_model(), sigmoid_outputs(200, 64)
    lite = kc.export.to_tflite(model, quantize="int8", calibration=x)
    layer = kc.layers.QuantDense.from_layer(
        model.get_layer("fc"), kernel_quantizer=Uniform(8), input_quantizer=UnitUniform(8)
    )
    simulated = ops.convert_to_numpy(layer(x))
    *_, (_, (step,), _) = dense_operation(lite.interpreter(delegate=False))
    assert step < np.ptp(simulated) / 200
    assert np.abs(lite.predict(x) - simulated).max() <= step
