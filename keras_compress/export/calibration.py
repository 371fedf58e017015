"""Calibration data in any form that `model.fit` takes, checked before anything is converted."""

import keras
import numpy as np

from keras_compress.export.structure import input_structure

#: Ranges of activations settle with far fewer samples than training needs.
MAX_SAMPLES = 256


def calibration_samples(model, calibration):
    """Makes calibration data a list of arrays, one for each input of the model.

    Args:
        model: A built Keras model with `inputs`.
        calibration: An array, a list, tuple or dict of arrays as the model takes them, or an
            iterable of batches `x` or `(x, y)` of those.

    Returns:
        List of arrays `(samples, ...)`, in the order of `model.inputs`, at most `MAX_SAMPLES` rows.

    Raises:
        ValueError: if there are no samples, a shape is not that of the input, or a value is not
            finite.
    """
    if _is_arrays(calibration):
        return _checked(model, flatten_inputs(model, calibration))
    return _gather(model, calibration)


def check_batches(samples, batch_size):
    """Raises `ValueError` if there are fewer samples than the file takes at a time."""
    if batch_size is not None and len(samples[0]) < batch_size:
        raise ValueError(
            f"calibration: the file takes {batch_size} samples at a time (batch_size); got "
            f"{len(samples[0])}. Give at least {batch_size}, or a smaller batch_size."
        )


def flatten_inputs(model, x, argument="calibration"):
    """Arrays in the order of `model.inputs`, given as the model's call takes them.

    Raises:
        ValueError: naming `argument`, if an input is missing or there are too many.
    """
    if isinstance(x, dict):
        nested = input_structure(model)
        keys = list(nested) if isinstance(nested, dict) else [t.name for t in model.inputs]
        missing = [key for key in keys if key not in x]
        if missing:
            raise ValueError(
                f"{argument}: no samples for the inputs {missing}; the model takes {keys}, got "
                f"{list(x)}."
            )
        x = {key: x[key] for key in keys} if isinstance(nested, dict) else [x[k] for k in keys]
    arrays = [np.asarray(array) for array in keras.tree.flatten(x)]
    if len(arrays) != len(model.inputs):
        raise ValueError(
            f"{argument}: the model takes {len(model.inputs)} inputs; got {len(arrays)} arrays."
        )
    return arrays


def random_samples(model, count=4, length=1):
    """Normal samples for float inputs, zeros for others (valid in any vocabulary).

    Args:
        model: A built Keras model with `inputs`.
        count: Number of samples.
        length: Length of open axes.
    """
    rng = np.random.default_rng(0)
    samples = []
    for tensor in model.inputs:
        shape = (count, *(length if size is None else size for size in tensor.shape[1:]))
        random = "float" in keras.backend.standardize_dtype(tensor.dtype)
        values = rng.normal(size=shape) if random else np.zeros(shape)
        samples.append(values.astype(tensor.dtype))
    return samples


def _is_arrays(value):
    if isinstance(value, dict):
        return True
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(hasattr(v, "shape") and len(v.shape) > 0 for v in value)
    return hasattr(value, "shape")


def _gather(model, batches):
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise ValueError(
            "calibration: give an array of samples, a list or dict of arrays, or an iterable of "
            f"batches; got {type(batches).__name__}."
        )
    kept, rows = [], 0
    for batch in batches:
        if isinstance(batch, tuple) and len(batch) in (2, 3):
            batch = batch[0]
        arrays = _checked(model, flatten_inputs(model, batch))
        kept.append(arrays)
        rows += len(arrays[0])
        if rows >= MAX_SAMPLES:
            break
    if not kept:
        raise ValueError("calibration: the data set is empty; 100 or so samples are needed.")
    return [np.concatenate(column)[:MAX_SAMPLES] for column in zip(*kept, strict=True)]


def _checked(model, arrays):
    """Arrays of the inputs' types, at most `MAX_SAMPLES` rows."""
    checked = [_of_input(array, tensor) for array, tensor in zip(arrays, model.inputs, strict=True)]
    counts = {tensor.name: len(a) for a, tensor in zip(arrays, model.inputs, strict=True)}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"calibration: the inputs differ in their numbers of samples: {counts}. Row by row "
            "they must belong together."
        )
    return checked


def _of_input(array, tensor):
    expected = tuple(tensor.shape[1:])
    matches = array.ndim == len(expected) + 1 and all(
        e is None or e == a for e, a in zip(expected, array.shape[1:], strict=True)
    )
    if not matches:
        raise ValueError(
            f"calibration: samples for input '{tensor.name}' must have the shape (samples, "
            f"{', '.join(map(str, expected))}); got {array.shape}."
        )
    if len(array) == 0:
        raise ValueError("calibration: there are no samples; 100 or so are needed.")
    array = array[:MAX_SAMPLES]
    if array.dtype.kind in "OSUcMm":
        raise ValueError(
            f"calibration: samples for input '{tensor.name}' must be numbers; got "
            f"{array.dtype}. Give what the model itself takes."
        )
    # Of both types: integers hide what float64 had, and float32 may overflow.
    finite = np.isfinite(array).all()
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(tensor.dtype)
    if not finite or not np.isfinite(array).all():
        raise ValueError(
            f"calibration: samples for input '{tensor.name}' hold NaN or infinite values; drop or "
            "repair those rows."
        )
    return array
