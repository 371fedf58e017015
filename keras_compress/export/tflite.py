"""`to_tflite`: a Keras 3 model as a .tflite of builtin operations."""

import dataclasses
import pathlib
import re

import keras

from keras_compress import validation
from keras_compress.export.calibration import (
    calibration_samples,
    check_batches,
    random_samples,
)
from keras_compress.export.conversion import REMEDY, convert_to_bytes
from keras_compress.export.edge_quantizer import quantize_layers
from keras_compress.export.large import large_kernels, marked_call
from keras_compress.export.lite_model import LiteModel
from keras_compress.export.modes import check_done, check_stored, modes_of
from keras_compress.export.narrowing import narrow
from keras_compress.export.plan import STORAGE, full_precision, inference_form, is_quantize_aware
from keras_compress.export.report import Origin, layer_of
from keras_compress.export.structure import input_names, layer_paths
from keras_compress.export.writer import write_stored
from keras_compress.files import write_atomically
from keras_compress.matching import leaf_layers

OPTIMIZE_FOR = ("latency", "size")

#: Largest difference to Keras, relative to the largest output, that a float export may show; and
#: one in which kernels quantise their inputs to 8 bits on the fly.
FLOAT_TOLERANCE = 1e-3
HYBRID_TOLERANCE = 0.1


def to_tflite(
    model,
    path=None,
    quantize=None,
    calibration=None,
    batch_size=1,
    storage="auto",
    optimize_for="latency",
):
    """Exports a model to .tflite: builtin operations only, compressed layers in their small form.

    The model is traced for inference. It is not changed; `path` is written whole or not at all.
    What the converter leaves as a dense float kernel (binary and ternary weights, codebooks, hashed
    and pruned weights) is stored small: as native int2, int4 or int8 tensors, as codes that are
    decoded once at load, or as a sparse tensor. The result's `layers` lists each.

    Args:
        model: A built Keras model (Sequential, functional, or subclassed with `model.inputs`).
        path: Where to write the file, or `None` to keep it in memory.
        quantize: What weights and activations become; inputs and outputs of the file stay float32.

            - `None`: float32.
            - `"float16"`: weights stored in half precision.
            - `"dynamic"`: int8 weights, float activations.
            - `"int4"`: int4 weights in dense layers and int8 ones in convolutions (where int4 is no
              faster than float32; `optimize_for="size"` takes it for them too), float activations.
            - `"int8"`: int8 weights and activations; needs `calibration`.
            - `"16x8"`: int8 weights, int16 activations: the accuracy of float activations where
              integers must be; needs `calibration`. LiteRT's kernels for it are some 20 times
              slower than float32 on x86-64.
            - A dict from keys to these, layer by layer: `{"fc*": "int4", "conv1": None, "*":
              "int8"}`. A key is a layer name, a glob, a layer class or a predicate, as for
              `kc.convert`; the first one that matches a layer counts, a layer that none matches
              stays float32. Operations that belong to no layer (`x + y`) have the mode of `"*"`.

            A model made by `kc.quantizers.quantize_aware(scheme="int8")` is always exported as
            int8, on the grids that it was trained with, and needs no `calibration`.
        calibration: Samples of the input, 100 or so: an array, a list or dict of arrays as the
            model takes them, a `tf.data.Dataset` or an iterable of batches (`x` or `(x, y)`). The
            exported model's outputs on them are compared with Keras's: see
            `LiteModel.max_error`.
        batch_size: Size of the batch axis; `None` leaves it open, which costs reshapes at run
            time.
        storage: `"auto"`: compressed layers in the form that says what they are; zeros of stock
            layers (where that saves a tenth at least) kept out of the file, at no cost in speed.
            `"compact"`: also stock layers whose kernels have at most 256 different values, as a
            grid or a codebook. `"dense"`: every kernel as the converter leaves it. With
            `quantize="int8"` or `"16x8"` kernels are int8; those of dense layers whose values lie
            on a grid of 4 bits are stored so with int8 activations. A form that a layer has of its
            own stays with the other modes; given for that layer in a dict, a mode of fewer bits
            than the form has is an error.
        optimize_for: Where a small form and a fast one differ: `"latency"` (convolutions of few
            bits run as int8 CONV_2D) or `"size"` (they run on patches, at 2 or 4 bits; binary and
            ternary kernels take 1 and 1.6 bits a weight, decoded at load).

    Returns:
        A `LiteModel`.

    Raises:
        ValueError: if the backend is not TensorFlow, the model is not built, `quantize` has an
            unknown mode or a key that chooses no layer (or none with a form of that mode),
            `calibration` is missing, empty, of the wrong shape or not finite, or an operation of
            some layer has no builtin form in LiteRT (the layer is named).
        RuntimeError: if the exported outputs differ from Keras's.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    >>> lite = to_tflite(model)
    >>> lite.ops
    ['FULLY_CONNECTED']
    """
    require_tensorflow()
    validation.one_of("storage", storage, STORAGE, "to_tflite")
    validation.one_of("optimize_for", optimize_for, OPTIMIZE_FOR, "to_tflite")
    check_exportable(model)
    modes = modes_of(model, quantize)
    aware = is_quantize_aware(model)
    if aware and quantize not in (None, "int8"):
        raise ValueError(
            f"to_tflite: '{model.name}' was made by quantize_aware() for integer kernels; got "
            f"quantize={quantize!r}. Leave `quantize` out."
        )
    quantize = "int8" if aware else quantize
    if batch_size is not None:
        validation.positive_int("batch_size", batch_size, "to_tflite")
    if path is not None:
        path = pathlib.Path(path)
        if path.is_dir():
            raise ValueError(f"to_tflite: `path` must be a file; {path} is a folder.")
        if not path.parent.is_dir():
            raise ValueError(f"to_tflite: there is no folder '{path.parent}' to write {path} in.")
    samples = None
    if calibration is not None:
        samples = calibration_samples(model, calibration)
    static = modes.static if modes else quantize == "int8"
    if static and not aware:
        if samples is None:
            raise ValueError(
                f"to_tflite: quantize={quantize!r} needs `calibration`: 100 or so samples of the "
                "input, from which the ranges of the activations are read. Without data, "
                'quantize="dynamic" and "int4" keep the activations in float.'
            )
        check_batches(samples, batch_size)
    full = full_precision(model)
    if modes is not None:
        content, layers, origin = _convert_by_layer(
            full, model, modes, samples, batch_size, storage, optimize_for
        )
    else:
        # The converter's calibrator runs the model, which it cannot with a kernel left out.
        marked = "dense" if quantize == "int8" else storage
        content, layers, origin = _convert(
            full, model, quantize, None if aware else samples, batch_size, marked, optimize_for
        )
    if storage != "dense" and (modes is not None or quantize in ("int8", "dynamic")):
        content = narrow(content, optimize_for)
    lite = LiteModel(
        content, path=path, model=model, quantize=quantize, layers=layers, origin=origin
    )
    _check_loads(lite)
    if samples is not None or layers:
        if samples is None:
            if any(None in tensor.shape[1:] for tensor in model.inputs):
                # The delegate may need a longer input than the kernels that it replaces.
                lite.interpreter()
            samples = random_samples(model, length=lite.open_length)
        lite.compare_with_keras(samples, full)
        _check_error(lite)
    if path is not None:
        write_atomically(path, content)
    return lite


def _convert_by_layer(model, named_after, modes, samples, batch_size, storage, optimize_for):
    """As `_convert`, then quantised as each layer's mode says."""
    content, layers, origin = _convert(
        model, named_after, None, None, batch_size, storage, optimize_for, modes
    )
    inputs = dict(zip(input_names(named_after), samples or [], strict=False))
    content, done, operations = quantize_layers(
        content, origin, modes, inputs, batch_size, optimize_for
    )
    check_done(modes, done | {layer.layer for layer in layers}, operations)
    return content, layers, origin


def _convert(model, named_after, quantize, samples, batch_size, storage, optimize_for, modes=None):
    """Bytes of the .tflite, what became of each stored kernel, and the `report.Origin`."""
    form, stored = inference_form(
        model, storage, quantize if modes is None else modes.of_layers(model)
    )
    stored = _with_paths(stored, form)
    if modes is not None:
        check_stored(modes, stored)
    large = large_kernels(form) if storage != "dense" and quantize is None else []
    calls = {
        id(layer): marked_call(layer, number)
        for number, (layer, _) in enumerate(large, start=len(stored))
    }
    stored = [*stored, *(plan for _, plan in large)]
    content, givers = convert_to_bytes(
        form, quantize, samples, batch_size, named_after, bool(stored), calls
    )
    origin = Origin.of(named_after, givers)
    if not stored:
        return content, [], origin
    content, layers, foreign = write_stored(content, stored, optimize_for)
    if foreign:
        # With markers let through, so are operations that LiteRT does not have: without, the
        # converter says which layer they are of.
        _convert(model, named_after, quantize, samples, batch_size, "dense", optimize_for)
    # A large float kernel is no other than the converter would have written.
    plain = {plan.layer for _, plan in large}
    return content, [layer for layer in layers if layer.layer not in plain], origin


def _with_paths(stored, form):
    """Stored kernels under their layers' paths: layers of nested models may share a name."""
    paths = {
        id(kernel): path
        for path, layer in layer_paths(form)
        for part in getattr(layer, "stored_parts", (layer,))
        if (kernel := getattr(part, "stored_kernel", None)) is not None
    }
    return [dataclasses.replace(plan, layer=paths[id(plan.kernel)]) for plan in stored]


def _check_loads(lite):
    """Raises `ValueError` if LiteRT refuses what the converter made of an operation."""
    try:
        lite.interpreter(delegate=False)
    except RuntimeError as error:
        # The last one is in the main graph, if the others are in the body of a loop.
        found = re.findall(r"Node number (\d+) \((\w+)\)", str(error))
        path = layer_of(lite, int(found[-1][0])) if found else None
        where = f"layer '{path}' of " if path else ""
        raise ValueError(
            f"to_tflite: {where}'{lite.model.name}' cannot run on LiteRT, which does not load what "
            f"the converter made of it: {str(error).strip()} {REMEDY}"
        ) from error


def _check_error(lite):
    hybrid = any(not layer.exact for layer in lite.layers)
    # A sign of something near zero turns on the last bit, so that no bound holds behind it.
    signs = any(getattr(layer, "input_quantizer", None) for layer in leaf_layers(lite.model))
    if lite.quantize is not None or (hybrid and signs):
        return
    allowed = HYBRID_TOLERANCE if hybrid else FLOAT_TOLERANCE
    # Not `>`: NaN is no success.
    if not lite.max_error <= allowed:
        raise RuntimeError(
            f"to_tflite: the exported model's outputs differ from Keras's by {lite.max_error:.2g} "
            f"of the largest output (allowed {allowed}). Nothing was written. Try "
            "storage='dense', and please report the model."
        )


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
