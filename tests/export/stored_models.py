"""Models of stored kernels, and what every file of the writer must hold: shared by its tests."""

import keras
import numpy as np

from keras_compress.export import to_tflite
from keras_compress.export.flatbuffer import Flatbuffer
from keras_compress.layers.stored_layers import StoredConv2D, StoredDense


def dense(kernel, **config):
    """A dense layer with a stored kernel and random bias."""
    layer = keras.layers.Dense(kernel.shape[-1], bias_initializer="normal", **config)
    layer.build((None, kernel.shape[0]))
    return StoredDense.of(layer, kernel)


def conv(kernel, **config):
    """A convolution with a stored kernel and random bias."""
    size, filters = kernel.shape[:2], kernel.shape[-1]
    layer = keras.layers.Conv2D(filters, size, bias_initializer="normal", **config)
    layer.build((None, None, None, kernel.shape[2]))
    return StoredConv2D.of(layer, kernel)


def export(layers, input_shape, **options):
    """A Sequential model of the layers, and its file, checked with `assert_clean`."""
    layers = layers if isinstance(layers, list) else [layers]
    model = keras.Sequential([keras.Input(input_shape), *layers])
    lite = to_tflite(model, **options)
    assert_clean(lite)
    return model, lite


def run(lite, *arrays, delegate=True):
    """First output of one invocation."""
    interpreter = lite.interpreter(delegate=delegate)
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def assert_runs_like(model, lite, x, tolerance):
    """With and without XNNPACK the file gives Keras's outputs, up to a share of the largest."""
    expected = np.asarray(model(x))
    allowed = tolerance * max(1e-6, float(np.abs(expected).max()))
    for delegate in (True, False):
        for attempt in range(2):
            actual = run(lite, x, delegate=delegate)
            assert actual.shape == expected.shape
            np.testing.assert_allclose(
                actual, expected, atol=allowed, rtol=0, err_msg=f"{delegate=}, {attempt=}"
            )


def assert_clean(lite):
    """No custom operation, nothing unused, no constant twice."""
    flatbuffer = Flatbuffer(lite.content)
    schema, model = flatbuffer.schema, flatbuffer.model
    codes = {code.builtinCode for code in model.operatorCodes}
    assert not codes & {schema.BuiltinOperator.CUSTOM, schema.BuiltinOperator.DELEGATE}
    used_codes, used_buffers = set(), {0}
    for number, graph in enumerate(model.subgraphs):
        used = {*graph.inputs, *graph.outputs}
        for operator in graph.operators:
            used_codes.add(operator.opcodeIndex)
            used |= {*operator.inputs, *operator.outputs} - {-1}
        assert used == set(range(len(graph.tensors))), f"orphans in subgraph {number}"
        used_buffers |= {tensor.buffer for tensor in graph.tensors}
    used_buffers |= {entry.buffer for entry in model.metadata or []}
    assert used_codes == set(range(len(model.operatorCodes)))
    assert used_buffers == set(range(len(model.buffers)))
    contents = [bytes(b.data) for b in model.buffers if b.data is not None and len(b.data)]
    assert len(contents) == len(set(contents))


def constants(lite, type_name):
    """Constants of a type: list of `(integers or floats, scales)`, unpacked here bit by bit."""
    flatbuffer = Flatbuffer(lite.content)
    found = []
    for graph in flatbuffer.subgraphs:
        for tensor in graph.graph.tensors:
            data = flatbuffer.data(tensor)
            if data is None or flatbuffer.type_name(tensor) != type_name:
                continue
            if type_name in ("INT4", "INT2"):
                bits = int(type_name[-1])
                stream = "".join(f"{byte:08b}"[::-1] for byte in data)
                words = [stream[i : i + bits][::-1] for i in range(0, len(stream), bits)]
                values = [int(word, 2) - (2**bits if word[0] == "1" else 0) for word in words]
                values = np.array(values[: int(np.prod(tensor.shape))])
            else:
                values = np.frombuffer(data, type_name.lower())
            scale = None if tensor.quantization is None else tensor.quantization.scale
            found.append((values.reshape(tensor.shape), scale))
    return found
