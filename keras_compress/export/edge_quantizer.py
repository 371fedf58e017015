"""Quantises operations of a finished .tflite by ai-edge-quantizer, each as its layer's mode says.

Measured on x86-64, one thread, batch 1 (ratios to float32):

- FULLY_CONNECTED runs fast on int4 and int8 weights (inputs quantised on the fly); a scale for each
  output channel is faster and smaller than one for each block of 32 inputs (4096: 9.6x against
  8.3x), at an error 3 to 8 % larger (normal weights).
- CONV_2D runs fast on int8 weights; on int4 at float speed.
- Other operations run at float speed on int8 weights that are unpacked at load; depthwise
  convolutions that quantise inputs on the fly are slower than float.
- int16 activations have reference kernels only: some 20 times slower than float32.
"""

import collections
import re
import warnings

import numpy as np

from keras_compress.export.conversion import rows
from keras_compress.export.flatbuffer import Flatbuffer
from keras_compress.export.lite_model import LiteModel
from keras_compress.export.modes import STATIC
from keras_compress.export.report import layer_operations
from keras_compress.export.structure import path_in

#: Operations with a layer's weights, and the operands that may be these.
_WEIGHTED = {
    "FULLY_CONNECTED": (1,),
    "CONV_2D": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "TRANSPOSE_CONV": (1,),
    "BATCH_MATMUL": (0, 1),
    "EMBEDDING_LOOKUP": (1,),
    "GATHER": (0,),
}
#: The names of ai-edge-quantizer, where they are not LiteRT's.
_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
#: Ends the names of outputs while the tool is at work.
_COPY = "_keras_compress_output"


def quantize_layers(content, origin, modes, samples, batch_size, optimize_for):
    """Quantises the operations of layers.

    Args:
        content: Bytes of a float .tflite; operations whose weights are integers already stay.
        origin: Its `report.Origin`.
        modes: `modes.Modes`.
        samples: Dict from the name of each input to calibration samples; not used if no mode is
            static.
        batch_size: Size of the file's batch axis, or `None`.
        optimize_for: `"latency"` or `"size"` (CONV_2D takes int4 too).

    Returns:
        `(content, done, operations)`: the bytes, the paths of layers of which some operation was
        quantised, and a dict from each path to the names of its operations.
    """
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    flatbuffer = Flatbuffer(content)
    owned = layer_operations(flatbuffer, origin)
    graph = flatbuffer.main
    operators = {
        path: [graph.operators[number] for number in numbers] for path, numbers in owned.items()
    }
    _make_names_unique(flatbuffer)
    _copy_outputs(flatbuffer)
    recipe, ranges, done = RecipeManager(), {}, set()
    mixed = len(set(modes.by_path.values())) > 1
    names = {path: [flatbuffer.name_of(one) for one in ones] for path, ones in operators.items()}
    for path, mode in {None: modes.rest, **modes.by_path}.items():
        # The weights of a loop are in its body, which the tool leaves alone.
        if mode is None or "WHILE" in names.get(path, []):
            continue
        for operator in operators.get(path, []):
            # Weights that belong to no layer have a mode only if it is that of all layers.
            if path is None and mixed and _weights(flatbuffer, operator) is not None:
                continue
            if _add(recipe, ranges, flatbuffer, operator, mode, optimize_for):
                done.add(path)
    if not done:
        return content, done, names
    content = flatbuffer.to_bytes()
    if modes.static:
        ranges |= _ranges(content, samples, batch_size or 1, list(modes.by_path))
    with warnings.catch_warnings():
        # The tool looks at the values between operations on purpose, and stored kernels are
        # integers already.
        warnings.filterwarnings("ignore", message="Warning: Enabling `experimental_preserve_all")
        warnings.filterwarnings("ignore", message="Input model is already partially quantized")
        tool = Quantizer(bytearray(content), recipe.get_quantization_recipe())
        result = tool.quantize(
            ranges or None, enable_progress_bar=False, enable_progress_report=False
        )
    flatbuffer = Flatbuffer(result.quantized_model)
    _drop_copies(flatbuffer)
    return flatbuffer.to_bytes(), done, names


def _add(recipe, ranges, flatbuffer, operator, mode, optimize_for):
    """Adds an operation to a recipe of the tool; returns whether there is such a form of it."""
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.quantizer import AlgorithmName

    graph, name = flatbuffer.main, flatbuffer.name_of(operator)
    try:
        kind = TFLOperationName(_NAMES.get(name, name))
    except ValueError:
        return False
    # The tool's scope of an operation: its outputs, which have names of their own.
    outputs = [graph.tensor(index).name.decode() for index in operator.outputs]
    scope = f"^{re.escape(''.join(f'{output};' for output in outputs))}$"
    weights = _weights(flatbuffer, operator)
    convolution = name == "CONV_2D" and not _is_grouped(graph, operator)
    narrow = name in ("FULLY_CONNECTED", "EMBEDDING_LOOKUP") or (
        convolution and optimize_for == "size"
    )
    bits = 4 if mode == "int4" and narrow else 8
    try:
        if mode in STATIC:
            if not _is_float(flatbuffer, operator):
                return False
            granularity = QuantGranularity.CHANNELWISE
            if name == "BATCH_MATMUL":
                # Scales by channel come out on an axis that LiteRT's kernel does not read.
                granularity = QuantGranularity.TENSORWISE
            recipe.add_static_config(scope, kind, 8 if mode == "int8" else 16, 8, granularity)
        elif weights is None:
            return False
        elif mode == "float16":
            casting = AlgorithmName.FLOAT_CASTING
            recipe.add_weight_only_config(scope, kind, 16, algorithm_key=casting)
        elif name == "GATHER":
            # Rows of the table are unpacked behind it: they are on its grid, which needs no data.
            recipe.add_static_config(scope, kind, 8, 8)
            table = np.frombuffer(flatbuffer.data(weights), np.float32)
            ranges[outputs[0]] = _range(table.min(), table.max())
        elif convolution or narrow or name == "FULLY_CONNECTED":
            recipe.add_dynamic_config(scope, kind, bits)
        else:
            recipe.add_weight_only_config(scope, kind, bits)
    except ValueError:
        # The tool's policy has no such form of the operation.
        return False
    return True


def _is_float(flatbuffer, operator):
    """Whether an operation computes in float32, from tensors that are float32 too."""
    graph = flatbuffer.main
    types = {flatbuffer.type_name(graph.tensor(index)) for index in operator.inputs if index >= 0}
    results = {flatbuffer.type_name(graph.tensor(index)) for index in operator.outputs}
    # Integers are shapes, axes and indices.
    return results == {"FLOAT32"} and types <= {"FLOAT32", "INT32", "INT64", "BOOL"}


def _weights(flatbuffer, operator):
    """The float32 constant that an operation takes as a layer's weights, or `None`."""
    for position in _WEIGHTED.get(flatbuffer.name_of(operator), ()):
        tensor = flatbuffer.main.tensor(operator.inputs[position])
        plain = flatbuffer.type_name(tensor) == "FLOAT32" and tensor.sparsity is None
        if plain and flatbuffer.data(tensor) is not None:
            return tensor
    return None


def _is_grouped(graph, operator):
    source, weights = (graph.tensor(index) for index in operator.inputs[:2])
    return source.shape[-1] != weights.shape[-1]


def _make_names_unique(flatbuffer):
    """Gives tensors of the same name numbers: the tool tells tensors apart by their names."""
    seen = collections.Counter()
    for graph in flatbuffer.subgraphs:
        for tensor in graph.graph.tensors:
            name = base = (tensor.name or b"").decode()
            while name in seen:
                seen[base] += 1
                name = f"{base}_{seen[base]}"
            seen[name] += 1
            tensor.name = name.encode()


def _copy_outputs(flatbuffer):
    """Makes each float output of the model a tensor that no operation reads.

    Of one that an operation reads too, the tool takes the operation's copy back to float.
    """
    graph = flatbuffer.main
    outputs = list(graph.graph.outputs)
    read = {int(index) for operator in graph.operators for index in operator.inputs}
    one = None
    for number, index in enumerate(outputs):
        tensor = graph.tensor(index)
        if int(index) not in read or flatbuffer.type_name(tensor) != "FLOAT32":
            continue
        if one is None:
            one = graph.add_constant(f"one{_COPY}", np.float32(1))
        copy = graph.add_tensor(f"{tensor.name.decode()}{_COPY}", tensor.shape, "FLOAT32")
        graph.tensor(copy).shapeSignature = tensor.shapeSignature
        graph.emit("MUL", [index, one], [copy], flatbuffer.schema.MulOptionsT())
        outputs[number] = copy
        _move_signature(flatbuffer, index, copy)
    graph.graph.outputs = outputs


def _drop_copies(flatbuffer):
    """Takes the copies of `_copy_outputs` out again."""
    graph = flatbuffer.main
    kept, outputs = [], list(map(int, graph.graph.outputs))
    for operator in graph.operators:
        given = int(operator.outputs[0]) if len(operator.outputs) else -1
        if given not in outputs or not graph.tensor(given).name.decode().endswith(_COPY):
            kept.append(operator)
            continue
        source = int(operator.inputs[0])
        outputs[outputs.index(given)] = source
        _move_signature(flatbuffer, given, source)
    graph.graph.operators, graph.graph.outputs = kept, outputs


def _move_signature(flatbuffer, old, new):
    for signature in flatbuffer.model.signatureDefs or []:
        for entry in signature.outputs if signature.subgraphIndex == 0 else []:
            if entry.tensorIndex == old:
                entry.tensorIndex = new


def _ranges(content, samples, batch_size, paths):
    """Smallest and largest value of each float tensor of the main graph over all samples.

    Not the tool's own calibration: its moving average of the ranges of single samples cuts off the
    tails (the outputs of a small CNN were 0.12 of the largest off with it, 0.003 without), and it
    fails on models with loops (recurrent layers).
    """
    flatbuffer = Flatbuffer(content)
    graph = flatbuffer.main
    entries = flatbuffer.model.signatureDefs[0].inputs
    places = {entry.name.decode(): int(entry.tensorIndex) for entry in entries}
    watched = {
        index: tensor.name.decode()
        for index, tensor in enumerate(graph.graph.tensors)
        if flatbuffer.type_name(tensor) == "FLOAT32" and flatbuffer.data(tensor) is None
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning: Enabling `experimental_preserve_all")
        interpreter = LiteModel(content).interpreter(delegate=False, preserve=True)
    found = {}
    for row in rows(list(samples.values()), batch_size):
        for name, array in zip(samples, row, strict=True):
            interpreter.resize_tensor_input(places[name], array.shape)
        interpreter.allocate_tensors()
        for name, array in zip(samples, row, strict=True):
            interpreter.set_tensor(places[name], array)
        interpreter.invoke()
        for index, name in watched.items():
            try:
                values = interpreter.get_tensor(index)
            except ValueError:
                # Nothing has been computed into it: a part of an operation that LiteRT fused.
                continue
            if np.isnan(values).any():
                path = path_in(name, paths)
                raise ValueError(
                    f"calibration: {f'layer {path!r}' if path else 'the model'} gives NaN on the "
                    "samples; look for NaN in its weights, or for samples out of its range."
                )
            # Minus infinity masks; it has no place on a grid.
            values = values[np.isfinite(values)]
            if values.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = min(low, values.min()), max(high, values.max())
    return {name: _range(low, high) for name, (low, high) in found.items()}


def _range(low, high):
    return {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
