"""int8 weights that lie on a coarser grid, repacked as int4 or int2.

The converter knows int8 only: it stretches a ternary kernel to -127, 0 and 127. The values stay
what they are; stock LiteRT runs FULLY_CONNECTED with such weights on int8 and on float inputs.
"""

import numpy as np

from keras_compress.export.flatbuffer import Flatbuffer, pack

#: Largest integer of an int4 weight: see `GridKernel.bits`.
_MAX_LEVEL = 7


def narrow(content, optimize_for):
    """Repacks the weights of FULLY_CONNECTED that fewer bits hold.

    Args:
        content: Bytes of a .tflite whose weights the converter made int8.
        optimize_for: `"latency"` (int4, the fastest kernel) or `"size"` (int2 where it holds them).

    Returns:
        Bytes of the .tflite.
    """
    flatbuffer = Flatbuffer(content)
    for graph in flatbuffer.subgraphs:
        for index, operators in _weights(flatbuffer, graph).items():
            tensor = graph.tensor(index)
            ints = np.frombuffer(flatbuffer.data(tensor), np.int8).reshape(tensor.shape)
            scale = np.broadcast_to(np.asarray(tensor.quantization.scale), len(ints))
            narrowed = coarser_grid(ints, one_scale=len(tensor.quantization.scale) == 1)
            if narrowed is None:
                continue
            coarse, factors = narrowed
            bits = 2 if optimize_for == "size" and np.abs(coarse).max() <= 1 else 4
            name = tensor.name.decode()
            weights = graph.add_tensor(
                name, ints.shape, f"INT{bits}", pack(coarse, bits), scale * factors
            )
            for operator in operators:
                _rebind(flatbuffer, graph, operator, weights, factors)
    return flatbuffer.to_bytes()


def coarser_grid(ints, one_scale=False):
    """Recognises rows of int8 integers that are a rounded multiple of integers up to 7.

    Args:
        ints: int8 matrix.
        one_scale: Whether all rows must have the same factor.

    Returns:
        `(coarse, factors)` with `ints == round(coarse * factors)`, a factor a row; or `None` if
        some row is on no such grid.
    """
    fine = ints.astype("float64")
    largest = np.abs(fine).max(1, keepdims=True)
    if one_scale:
        largest[:] = largest.max()
    coarse, factors = np.zeros_like(ints), np.ones((len(ints), 1))
    open_rows = largest[:, 0] > 0
    for level in range(1, _MAX_LEVEL + 1):
        step = np.where(largest > 0, largest, 1.0) / level
        levels = np.round(fine / step)
        fits = np.all(np.round(levels * step) == fine, axis=1)
        chosen = open_rows & (fits.all() if one_scale else fits)
        coarse[chosen], factors[chosen] = levels[chosen], step[chosen]
        open_rows = open_rows & ~chosen
    return None if open_rows.any() else (coarse, factors[:, 0])


def _weights(flatbuffer, graph):
    """int8 weights that only FULLY_CONNECTED reads: dict from the tensor to its operations.

    Inputs of 16 bits have no kernel for weights of fewer bits than 8.
    """
    readers = {}
    for operator in graph.operators:
        for position, index in enumerate(operator.inputs):
            readers.setdefault(int(index), []).append((position, operator))
    found = {}
    for index, uses in readers.items():
        if index < 0 or not all(
            position == 1
            and flatbuffer.name_of(operator) == "FULLY_CONNECTED"
            and flatbuffer.type_name(graph.tensor(operator.inputs[0])) != "INT16"
            for position, operator in uses
        ):
            continue
        tensor = graph.tensor(index)
        plain = flatbuffer.type_name(tensor) == "INT8" and tensor.sparsity is None
        if plain and flatbuffer.data(tensor) is not None:
            found[index] = [operator for _, operator in uses]
    return found


def _rebind(flatbuffer, graph, operator, weights, factors):
    """Gives an operation its new weights, and a bias in the unit of the new products."""
    source, bias = int(operator.inputs[0]), int(operator.inputs[2])
    if bias >= 0 and flatbuffer.type_name(graph.tensor(bias)) == "INT32":
        old = graph.tensor(bias)
        ints = np.frombuffer(flatbuffer.data(old), np.int32)
        scale = np.asarray(graph.tensor(source).quantization.scale) * np.asarray(
            graph.tensor(weights).quantization.scale
        )
        bias = graph.add_constant(
            old.name.decode(), np.round(ints / factors).astype(np.int32), scale
        )
    operator.inputs = [source, weights, bias]
    operator.opcodeIndex = flatbuffer.operator_code("FULLY_CONNECTED", 9)
