"""`to_tflite`: a Keras 3 model as a .tflite of builtin operations."""

import pathlib

import keras

from keras_compress import validation
from keras_compress.convert import rebuild
from keras_compress.export.calibration import calibration_samples
from keras_compress.export.conversion import convert_to_bytes
from keras_compress.export.files import write_atomically
from keras_compress.export.lite_model import LiteModel
from keras_compress.layers import CompressedLayer
from keras_compress.matching import leaf_layers

QUANTIZE = (None, "float16", "dynamic", "int8")

#: Largest difference to Keras, relative to the largest output, that a float export may show.
FLOAT_TOLERANCE = 1e-3


def to_tflite(model, path=None, quantize=None, calibration=None, batch_size=1):
    """Exports a model to .tflite: builtin operations only, compressed layers in their small form.

    The model is traced for inference. It is not changed; `path` is written whole or not at all.

    Args:
        model: A built Keras model (Sequential, functional, or subclassed with `model.inputs`).
        path: Where to write the file, or `None` to keep it in memory.
        quantize: `None` (float32), `"float16"` (weights stored in half precision), `"dynamic"`
            (int8 weights, float activations) or `"int8"` (int8 weights and activations; inputs and
            outputs of the file stay float32; needs `calibration`).
        calibration: Samples of the input, 100 or so: an array, a list or dict of arrays as the
            model takes them, a `tf.data.Dataset` or an iterable of batches (`x` or `(x, y)`). The
            exported model's outputs on them are compared with Keras's: see
            `LiteModel.max_error`.
        batch_size: Size of the batch axis; `None` leaves it open, which costs reshapes at run
            time.

    Returns:
        A `LiteModel`.

    Raises:
        ValueError: if the backend is not TensorFlow, the model is not built, `quantize` is
            unknown, `calibration` is missing, empty, of the wrong shape or not finite, or an
            operation of some layer has no builtin form in LiteRT (the layer is named).
        RuntimeError: if a float export's outputs differ from Keras's.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    >>> lite = to_tflite(model)
    >>> lite.ops
    ['FULLY_CONNECTED']
    """
    require_tensorflow()
    validation.one_of("quantize", quantize, QUANTIZE, "to_tflite")
    check_exportable(model)
    if batch_size is not None:
        validation.positive_int("batch_size", batch_size, "to_tflite")
    if path is not None:
        path = pathlib.Path(path)
        if not path.parent.is_dir():
            raise ValueError(f"to_tflite: there is no folder '{path.parent}' to write {path} in.")
    samples = None
    if calibration is not None:
        samples = calibration_samples(model, calibration)
    elif quantize == "int8":
        raise ValueError(
            'to_tflite: quantize="int8" needs `calibration`: 100 or so samples of the input, from '
            'which the ranges of the activations are read. Without data, quantize="dynamic" keeps '
            "the activations in float."
        )
    content = convert_to_bytes(inference_form(model), quantize, samples, batch_size, model)
    lite = LiteModel(content, path=path, model=model, quantize=quantize)
    if samples is not None:
        lite.compare_with_keras(samples)
        if quantize is None and lite.max_error > FLOAT_TOLERANCE:
            raise RuntimeError(
                f"to_tflite: the exported model's outputs differ from Keras's by "
                f"{lite.max_error:.2g} of the largest output (allowed {FLOAT_TOLERANCE}). Nothing "
                "was written; please report the model."
            )
    if path is not None:
        write_atomically(path, content)
    return lite


def require_tensorflow():
    """Raises `ValueError` unless Keras runs on TensorFlow."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            f"Export to .tflite needs Keras's TensorFlow backend; this process runs on {backend}. "
            "Save the model (model.save('model.keras')), then load and export it in a process "
            "started with KERAS_BACKEND=tensorflow."
        )


def check_exportable(model):
    """Raises `ValueError` unless `model` is a built Keras model whose inputs are known."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"to_tflite exports a keras.Model; got {type(model).__name__}.")
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built: give it a keras.Input or call it on data first."
        )
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"Model '{model.name}' is a subclassed model whose inputs are not known. Wrap it: "
            "x = keras.Input(shape); keras.Model(x, model(x))."
        )


def inference_form(model):
    """Returns the model as it is converted: in full precision, compressed layers in export form."""
    layers = leaf_layers(model)
    # LiteRT's builtins compute in float32; half precision is a matter of storage there.
    if any(layer.compute_dtype != layer.variable_dtype for layer in layers):
        model = rebuild(model, {}, lambda layer, config: config | {"dtype": layer.variable_dtype})
        layers = leaf_layers(model)
    compressed = [layer for layer in layers if isinstance(layer, CompressedLayer)]
    forms = {id(layer): layer.export_form() for layer in compressed}
    if all(forms[id(layer)] is layer for layer in compressed):
        return model
    return rebuild(model, forms)
