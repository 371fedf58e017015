"""The variables of a model as named arrays, by Keras's own weights file."""

import contextlib
import pathlib
import tempfile

import h5py
import ml_dtypes
import numpy as np


def state_of(model):
    """Arrays of a model by their place in it, without those of its optimizer and metrics."""
    with _weights_file(model) as path, h5py.File(path, "r") as file:
        return {name: _array(dataset) for name, dataset in _datasets(file).items()}


def forms_of(model):
    """`(shape, numpy dtype)` of each array of `state_of`, of a model that is not compiled."""
    with _weights_file(model) as path, h5py.File(path, "r") as file:
        return {name: (each.shape, _dtype(each)) for name, each in _datasets(file).items()}


def load_state(model, arrays):
    """Sets the variables of a model that is not compiled.

    Args:
        model: A built model.
        arrays: Dict from the names of `forms_of(model)` to arrays of its shapes and dtypes, or an
            iterable of such pairs.
    """
    with _weights_file(model) as path:
        with h5py.File(path, "r+") as file:
            for name, array in arrays:
                dataset = file[name]
                dataset[...] = array.view(dataset.dtype) if array.ndim else array
        model.load_weights(path)


@contextlib.contextmanager
def _weights_file(model):
    # Keras knows which objects in a layer have state, and only hands it out as a file.
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.weights.h5")
        model.save_weights(path)
        yield path


def _datasets(file):
    found = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith(("optimizer/", "metrics/")):
            found[name] = item

    file.visititems(note)
    return found


def _dtype(dataset):
    bfloat16 = dataset.attrs.get("dtype") == "bfloat16"
    return np.dtype(ml_dtypes.bfloat16) if bfloat16 else dataset.dtype


def _array(dataset):
    return np.asarray(dataset[()]).view(_dtype(dataset))
