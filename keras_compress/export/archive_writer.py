"""`save_archive`: a model in a .kcz file, every weight in its smallest lossless form."""

import dataclasses
import math
import pathlib
import struct

import keras

from keras_compress.export.archive_config import build_model, config_of
from keras_compress.export.archive_format import (
    DTYPES,
    HEADER,
    KINDS,
    LENGTH,
    MAGIC,
    VERSION,
    ArchiveError,
    sealed,
)
from keras_compress.export.archive_state import forms_of, state_of
from keras_compress.export.archive_weights import encode
from keras_compress.files import write_atomically
from keras_compress.tables import Table


@dataclasses.dataclass(frozen=True)
class ArchivedWeight:
    """How an archive holds one weight.

    Attributes:
        name: Its place in the model.
        shape: Its shape.
        dtype: Its dtype.
        kind: `"raw"`, `"deflated"`, `"coded"` (Huffman codes and values) or `"sparse"` (also
            Huffman-coded gaps).
        nbytes: Bytes of its record.
        dense_bytes: Bytes of the array.
        code_bits: Mean bits of a code, or `None`.
        gap_bits: Mean bits of a gap, or `None`.
    """

    name: str
    shape: tuple
    dtype: str
    kind: str
    nbytes: int
    dense_bytes: int
    code_bits: float | None
    gap_bits: float | None


class Archive:
    """What `save_archive` returns: prints as a table.

    Sizes are compared with the arrays that the layers hold, so that the codes of a
    `kc.layers.CodebookDense` count as the bytes that they are already, not as the floats that they
    stand for.

    Args:
        path: The file.
        nbytes: Its size.
        weights: List of `ArchivedWeight`.
    """

    def __init__(self, path, nbytes, weights):
        self.path = path
        self.nbytes = nbytes
        self.weights = list(weights)

    @property
    def dense_bytes(self):
        """Bytes of all weights as plain arrays."""
        return sum(weight.dense_bytes for weight in self.weights)

    def table(self):
        """A row for each weight, and one for the file."""
        rows = [
            [w.name, "x".join(map(str, w.shape)) or "scalar", w.dtype, w.kind, f"{w.nbytes:,}",
             f"{w.dense_bytes / w.nbytes:.1f}x", _bits(w.code_bits), _bits(w.gap_bits)]
            for w in self.weights
        ]  # fmt: skip
        ratio = f"{self.dense_bytes / self.nbytes:.1f}x"
        rows.append(["file", "", "", "", f"{self.nbytes:,}", ratio, "", ""])
        header = ["weight", "shape", "dtype", "stored", "bytes", "smaller", "code", "gap"]
        return Table(header, rows, align="<<<<>>>>")

    def __repr__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def _bits(value):
    return "" if value is None else f"{value:.2f} bits"


def save_archive(model, path):
    """Writes a model to a `.kcz` file: every weight lossless, in the smallest of several forms.

    A weight of few different values becomes Huffman codes and these values, one of mostly zeros
    (or any other value) Huffman codes of the others and of the gaps between them, one on a grid
    with a scale for each output channel integers and scales; anything else is deflated. What
    `load_archive` gives has the same weights to the last bit.

    What it buys: the bytes of storage and transfer. Nothing runs from an archive: see
    `archive_to_tflite`. The format is in `docs/kcz.md`.

    Args:
        model: A built Sequential or functional model of layers of Keras and of this package.
            Its optimizer and metrics are not kept.
        path: The file, which is replaced if there is one, whole or not at all.

    Returns:
        An `Archive`: `nbytes`, a row for each weight, printable.

    Raises:
        ValueError: if the model is not built, holds classes of your own, a Lambda or a lookup
            table, or `path` is in no folder.

    Reference:
        Han, Mao, Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
        Quantization and Huffman Coding", 2016.

    Example:

    >>> import pathlib, tempfile
    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> from keras_compress.export import load_archive
    >>> model = keras.Sequential([keras.Input((256,)), keras.layers.Dense(100, name="fc")])
    >>> small = kc.sharing.cluster(kc.pruning.prune_weights(model, "magnitude", 0.9), bits=5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.kcz")
    ...     archive = save_archive(small, path)
    ...     again = load_archive(path)
    >>> archive.nbytes < 0.05 * 4 * model.count_params()
    True
    >>> all(np.array_equal(a, b) for a, b in zip(small.weights, again.weights))
    True
    """
    path = _checked(model, path)
    config, stored, size = config_of(model)
    state = _state(model, config)
    content = [sealed(stored)]
    weights = []
    for name, array in state.items():
        form = encode(array)
        dims = struct.pack(f"<{array.ndim}I", *array.shape)
        kind = DTYPES.index(array.dtype.name)
        body = struct.pack("<BBB", form.kind, kind, array.ndim) + dims + form.payload
        content.append(sealed(LENGTH.pack(len(body)) + body))
        weights.append(
            ArchivedWeight(
                _place(name), array.shape, array.dtype.name, KINDS[form.kind], len(content[-1]),
                array.nbytes, form.code_bits, form.gap_bits,
            )
        )  # fmt: skip
    total = HEADER.size + 4 + sum(map(len, content))
    header = HEADER.pack(MAGIC, VERSION, 0, len(weights), len(stored), size, total)
    write_atomically(path, b"".join([sealed(header), *content]))
    return Archive(path, total, weights)


def _place(name):
    return name.replace("layers/", "").replace("vars/", "")


def _checked(model, path):
    if not isinstance(model, keras.Model):
        raise ValueError(f"save_archive takes a keras.Model; got {type(model).__name__}.")
    if not model.built:
        raise ValueError(
            f"save_archive: model '{model.name}' is not built; give it a keras.Input or call it "
            "first."
        )
    path = pathlib.Path(path)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"is in '{path.parent}', which is no folder"
        raise ValueError(f"save_archive: `path` must be a file to write; {path} {what}.")
    return path


def _state(model, config):
    """Arrays of the model, in the order in which a model of its configuration has them."""
    name = f"save_archive: model '{model.name}'"
    try:
        forms = forms_of(build_model(config, math.inf, name))
    except ArchiveError as error:
        raise ValueError(str(error)) from error
    state = state_of(model)
    if {key: (array.shape, array.dtype) for key, array in state.items()} != forms:
        raise ValueError(
            f"{name} has other weights than a model made of its configuration: layers were changed "
            "after they were made. Save a model of its own, such as kc.pruning.strip() gives."
        )
    unknown = {array.dtype.name for array in state.values()} - set(DTYPES)
    if unknown:
        raise ValueError(f"{name} has weights of dtype {unknown.pop()}, which no archive holds.")
    return {key: state[key] for key in forms}
