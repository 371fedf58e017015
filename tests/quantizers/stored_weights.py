"""Weights of a .tflite as they lie in the file, read without the interpreter."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_OPS = (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.CONV_2D)


def stored_weights(content):
    """Weights of the one dense or convolutional operation of a model.

    Returns:
        `(bits, ints, scale)`: integers with the output channels first and one scale for each; for
        float weights `(32, values, None)`.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    codes = [code.builtinCode for code in model.operatorCodes]
    (operator,) = [o for o in graph.operators if codes[o.opcodeIndex] in _OPS]
    tensor = graph.tensors[operator.inputs[1]]
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    types = schema.TensorType
    shape, count = tuple(tensor.shape), int(np.prod(tensor.shape))
    if tensor.type == types.FLOAT32:
        return 32, data.view("<f4").reshape(shape), None
    bits = {types.INT8: 8, types.INT4: 4, types.INT2: 2}[tensor.type]
    fields = [data >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
    ints = np.stack(fields, axis=1).ravel()[:count].astype(int)
    ints = np.where(ints >= 2 ** (bits - 1), ints - 2**bits, ints)
    scale = np.asarray(tensor.quantization.scale, np.float32)
    assert not np.any(tensor.quantization.zeroPoint)
    return bits, ints.reshape(shape), np.broadcast_to(scale, shape[0])
