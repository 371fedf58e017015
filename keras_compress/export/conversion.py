"""The one place that calls TensorFlow's converter."""

import contextlib
import functools
import re
import threading
import warnings

import keras

from keras_compress.export.structure import (
    input_names,
    input_structure,
    layer_paths,
    output_names,
    path_in,
)

#: One trace at a time: tracing wraps the layers' `call`, and two may be of the same model.
_TRACING = threading.Lock()

#: What to do about operations that users meet often, by a word in the operation's name.
_REMEDIES = (
    (
        "TensorList",
        "A recurrent layer converts with a fixed batch_size, or with unroll=True and a fixed "
        "length of the sequence.",
    ),
    (
        "Lookup|String|Regex|Ragged|SparseCross",
        "Strings and tables have no place in LiteRT: look the values up before the model "
        "(in Python, in tf.data, or in the app) and give it the integers.",
    ),
    (
        "Bincount",
        'output_mode="one_hot" converts; sum its result over the axis of the categories.',
    ),
    ("ResizeBicubic", 'interpolation="bilinear" and "nearest" convert.'),
)

#: What to do about any other operation.
REMEDY = (
    "Replace the layer by one made of builtin operations (kc.convert), or cut the model there and "
    "run that part outside of the .tflite."
)


def convert_to_bytes(
    model, quantize, samples, batch_size, named_after=None, markers=False, calls=None
):
    """Converts a built model to the bytes of a .tflite.

    Args:
        model: A built Keras model with `inputs`.
        quantize: One of `modes.CONVERTER`.
        samples: List of arrays for the inputs, or `None`.
        batch_size: Integer or `None`.
        named_after: Model whose inputs and outputs name those of the file, if `model` is a copy of
            it: Keras names the inputs of a copy otherwise.
        markers: Whether there are markers (see `export.markers`), which are custom operations.
        calls: Dict from `id(layer)` to the function that is traced in place of the layer's `call`,
            or `None`.

    Returns:
        `(content, givers)`: the bytes, and a dict from the name of each output to the path (see
        `structure.layer_paths`) of the layer that gives it, or `None`. Tensors in the file are
        named after the path of the layer that they were computed in.

    Raises:
        ValueError: if an operation has no builtin form.
    """
    import tensorflow as tf

    function, names, givers = _concrete_function(
        model, batch_size, named_after or model, calls or {}
    )
    # The converter freezes only the variables that it finds tracked; Keras's own are not. Those
    # that no operation reads would be copied for nothing.
    holder = tf.Module()
    holder.variables_of_model = list(function.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.allow_custom_ops = markers
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    # Without samples, the ranges of int8 are those of the fake quantisation in the model.
    elif quantize == "int8" and samples is not None:
        converter.target_spec.supported_ops.append(tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
        converter.representative_dataset = lambda: (
            dict(zip(names, row, strict=True)) for row in rows(samples, batch_size or 1)
        )
    try:
        with warnings.catch_warnings():
            # The converter's own calibrator still uses TensorFlow's interpreter.
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprec")
            warnings.filterwarnings("ignore", message="Statistics for quantized inputs")
            return converter.convert(), givers
    except Exception as error:
        refusal = _explain(model, function, str(error))
        if refusal is None:
            raise
        raise ValueError(refusal) from error


def _concrete_function(model, batch_size, named_after, calls):
    """Traces `model` for inference; inputs and outputs keep their names in the signature."""
    import tensorflow as tf

    names = input_names(named_after)
    specs = {
        name: tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(names, model.inputs, strict=True)
    }
    labels = output_names(named_after)
    paths = [path for path, _ in layer_paths(model)]
    givers = {}

    def serve(**inputs):
        flat = [inputs[name] for name in names]
        outputs = model(keras.tree.pack_sequence_as(input_structure(model), flat), training=False)
        outputs = dict(zip(labels, keras.tree.flatten(outputs), strict=True))
        givers.update((label, path_in(tensor.name, paths)) for label, tensor in outputs.items())
        return outputs

    with _TRACING, _scopes(model, calls):
        function = tf.function(serve, autograph=False).get_concrete_function(**specs)
    return function, names, givers


@contextlib.contextmanager
def _scopes(model, calls):
    """While it lasts, each layer computes in a name scope that is its path, by `calls` if there.

    Keras opens scopes too, but numbers them, so that a second call of "fc" and a layer "fc_1" look
    alike. The converter carries names through whatever it fuses.
    """
    layers = layer_paths(model)
    own = [(layer, vars(layer)["call"]) for _, layer in layers if "call" in vars(layer)]
    try:
        for path, layer in layers:
            layer.call = _in_scope(path, calls.get(id(layer), layer.call))
        yield
    finally:
        for _, layer in layers:
            vars(layer).pop("call", None)
        for layer, call in own:
            layer.call = call


def _in_scope(path, call):
    import tensorflow as tf

    @functools.wraps(call)
    def scoped(*args, **kwargs):
        # The slash at the end makes it this very scope, at any depth and in every call.
        with tf.name_scope(f"{path}/"):
            return call(*args, **kwargs)

    return scoped


def rows(samples, batch_size):
    """Batches of calibration samples: lists of arrays, an incomplete one left out."""
    for start in range(0, len(samples[0]) - batch_size + 1, batch_size):
        yield [array[start : start + batch_size] for array in samples]


def _explain(model, function, message):
    """What to tell the user of a converter's message, or `None` if it is not about an operation."""
    kinds = set(re.findall(r"'tf\.(\w+)'", message))
    kinds |= set(re.findall(r"Op type not registered '(\w+)'", message))
    # The summary names every operation that would need TensorFlow itself ("Flex").
    for listed in re.findall(r"(?:TF Select|Custom) ops: ([\w, ]+)", message):
        kinds |= {name for name in re.split(r",\s*", listed.strip()) if name}
    kinds = sorted(kinds - {"Placeholder"})
    paths = [path for path, _ in layer_paths(model)]
    layers = _layers_with(function, kinds, paths)
    if not layers:
        located = re.findall(r'"([^"]*)"', message)
        layers = {path for name in located if (path := path_in(name.partition("@")[0], paths))}
    if not kinds and not layers:
        return None
    layers = [path for path in paths if path in layers]
    where = f"layer{_s(layers)} {', '.join(map(repr, layers))} of " if layers else ""
    what = (
        f"which has no builtin for the TensorFlow operation{_s(kinds)} {', '.join(kinds)}"
        if kinds
        else f"since the converter refuses it: {message.strip().splitlines()[0]}"
    )
    remedies = [text for words, text in _REMEDIES if any(re.search(words, kind) for kind in kinds)]
    return " ".join(
        [
            f"to_tflite: {where}'{model.name}' cannot run on LiteRT, {what}.",
            *(remedies or [REMEDY]),
        ]
    )


def _s(names):
    return "s" if len(names) > 1 else ""


def _layers_with(function, kinds, paths):
    """Paths of the layers in whose calls operations of some kinds were traced."""
    graph = function.graph.as_graph_def()
    bodies = {body.signature.name: body.node_def for body in graph.library.function}
    found = set()

    def search(nodes, above):
        for node in nodes:
            path = above or path_in(node.name, paths)
            if node.op in kinds and path:
                found.add(path)
            for value in node.attr.values():
                for called in (value.func, *value.list.func):
                    if called.name in bodies:
                        search(bodies[called.name], path)

    search(graph.node, None)
    return found
