"""The one place that calls TensorFlow's converter."""

import re
import warnings

import keras

from keras_compress.export.structure import input_names, input_structure, output_names
from keras_compress.matching import leaf_layers


def convert_to_bytes(model, quantize, samples, batch_size, named_after=None, markers=False):
    """Converts a built model to the bytes of a .tflite.

    Args:
        model: A built Keras model with `inputs`.
        quantize: One of `tflite.QUANTIZE`.
        samples: List of arrays for the inputs, or `None`.
        batch_size: Integer or `None`.
        named_after: Model whose inputs and outputs name those of the file, if `model` is a copy of
            it: Keras names the inputs of a copy otherwise.
        markers: Whether the model has markers (see `export.markers`), which are custom operations.

    Raises:
        ValueError: if an operation has no builtin form.
    """
    import tensorflow as tf

    function, names = _concrete_function(model, batch_size, named_after or model)
    # The converter freezes only the variables that it finds tracked; Keras's own are not.
    holder = tf.Module()
    holder.variables_of_model = [variable.value for variable in model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.allow_custom_ops = markers
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif quantize == "int8":
        converter.target_spec.supported_ops.append(tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
        converter.representative_dataset = lambda: (
            dict(zip(names, row, strict=True)) for row in _rows(samples, batch_size or 1)
        )
    try:
        with warnings.catch_warnings():
            # The converter's own calibrator still uses TensorFlow's interpreter.
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprec")
            return converter.convert()
    except Exception as error:
        refusal = _explain(model, str(error))
        if refusal is None:
            raise
        raise ValueError(refusal) from error


def _concrete_function(model, batch_size, named_after):
    """Traces `model` for inference; inputs and outputs keep their names in the signature."""
    import tensorflow as tf

    names = input_names(named_after)
    specs = {
        name: tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(names, model.inputs, strict=True)
    }
    labels = output_names(named_after)

    def serve(**inputs):
        flat = [inputs[name] for name in names]
        outputs = model(keras.tree.pack_sequence_as(input_structure(model), flat), training=False)
        return dict(zip(labels, keras.tree.flatten(outputs), strict=True))

    return tf.function(serve, autograph=False).get_concrete_function(**specs), names


def _rows(samples, batch_size):
    for start in range(0, len(samples[0]) - batch_size + 1, batch_size):
        yield [array[start : start + batch_size] for array in samples]


def _explain(model, message):
    """What to tell the user of a converter's message, or `None` if it is not about an operation."""
    missing = re.findall(r"'?tf\.(\w+)'? op is neither a custom op nor a flex op", message)
    missing = sorted(set(missing))
    missing = missing or sorted(set(re.findall(r"Op type not registered '(\w+)'", message)))
    listed = re.search(r"Some ops are not supported.*?\n?TF Select ops: ([\w, ]+)", message)
    if listed:
        missing = sorted(set(missing) | set(re.split(r",\s*", listed.group(1).strip())))
    missing = [name for name in missing if name]
    if not missing:
        return None
    names = {layer.name for layer in leaf_layers(model)}
    located = set(re.findall(r"[\w.\-]+", " ".join(re.findall(r'"([^"]*)"', message))))
    layers = sorted(names & located)
    where = f"layer{'s'[: len(layers) > 1]} {', '.join(map(repr, layers))} of " if layers else ""
    return (
        f"to_tflite: {where}'{model.name}' cannot run on LiteRT, which has no builtin for the "
        f"TensorFlow operation{'s'[: len(missing) > 1]} {', '.join(missing)}. "
        "Replace the layer by one made of builtin operations (kc.convert), or cut the model there "
        "and run that part outside of the .tflite."
    )
