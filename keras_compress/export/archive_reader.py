"""`load_archive` and `archive_to_tflite`: a .kcz file back to a model, and on to LiteRT."""

import contextlib
import math
import pathlib

from keras_compress import validation
from keras_compress.export.archive_config import build_model, parse_config
from keras_compress.export.archive_format import (
    DTYPES,
    HEADER,
    LENGTH,
    MAGIC,
    MAX_RANK,
    VERSION,
    ArchiveError,
    Cursor,
    inflated,
    numpy_dtype,
    unsealed,
)
from keras_compress.export.archive_state import forms_of, load_state
from keras_compress.export.archive_weights import decode
from keras_compress.export.tflite import to_tflite

#: A file's weights take at most this many times its size, and this many bytes, by default.
_RATIO, _FREE_BYTES = 256, 2**26


def load_archive(path, max_bytes=None):
    """Reads a model from a `.kcz` file.

    Files from strangers are safe to try: nothing in them is run, the configuration may name classes
    of Keras and of this package only (no Lambda), every size is checked before memory is taken, and
    everything is checksummed.

    Args:
        path: A file of `save_archive`.
        max_bytes: Most bytes that the weights may take in memory; by default 256 times the file and
            64 MiB.

    Returns:
        The model, not compiled.

    Raises:
        ArchiveError: a `ValueError`, if the file is no archive, is cut off or damaged, of a later
            version, of a model that cannot be made, or larger in memory than allowed.

    Example: see `save_archive`.
    """
    if max_bytes is not None:
        max_bytes = validation.positive_int("max_bytes", max_bytes, "load_archive")
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"load_archive: there is no file '{path}'.")
    # Enough to see that it is something else, before all of it is read.
    with open(path, "rb") as file:
        start = file.read(HEADER.size)
        _check_start(start, path)
        content = start + file.read()
    limit = _RATIO * len(content) + _FREE_BYTES if max_bytes is None else max_bytes
    config, records = _parse(content, limit, str(path))
    # What the records hold is what the model has, and so is known before the model is made.
    declared = sum(record.nbytes for record in records)
    if declared > limit:
        raise ArchiveError(
            f"{path}: its weights take {declared:,} bytes, and at most {limit:,} are expected of "
            "a file of this size. If you trust it, give a larger `max_bytes`."
        )
    model = build_model(config, declared, str(path))
    with _blamed_on(path):
        forms = forms_of(model)
        _check_forms(records, forms, path)
        load_state(
            model,
            (
                (name, decode(record.kind, record.payload, *form))
                for (name, form), record in zip(forms.items(), records, strict=True)
            ),
        )
    return model


def archive_to_tflite(path, out=None, **options):
    """Exports the model of an archive: what an installer does once, on the device.

    Args:
        path: A file of `save_archive`.
        out: The `.tflite` file to write, or `None`.
        **options: Arguments of `to_tflite` (`quantize`, `storage`, ...).

    Returns:
        A `LiteModel`.

    Raises:
        ValueError: as `load_archive` and `to_tflite` do.

    Example:

    >>> import pathlib, tempfile
    >>> import keras
    >>> from keras_compress.export import save_archive
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.kcz")
    ...     archive = save_archive(model, path)
    ...     lite = archive_to_tflite(path, path.with_suffix(".tflite"))
    >>> lite.ops
    ['FULLY_CONNECTED']
    """
    return to_tflite(load_archive(path), out, **options)


@contextlib.contextmanager
def _blamed_on(path):
    """Makes what goes wrong with a layer of an odd configuration an error of the file."""
    try:
        yield
    except (ArchiveError, OSError):
        # A full disk is no fault of the file.
        raise
    except Exception as error:
        raise ArchiveError(f"{path}: its weights do not go into its model: {error}") from error


class _Record:
    """Head of a weight's record, and a cursor at its payload."""

    def __init__(self, body):
        self.kind, dtype, rank = body.unpack("BBB")
        if dtype >= len(DTYPES) or rank > MAX_RANK:
            raise ArchiveError(f"{body.what}: dtype {dtype} or rank {rank} is unknown.")
        dims = body.unpack(f"{rank}I") if rank else ()
        self.form = (dims if isinstance(dims, tuple) else (dims,), numpy_dtype(DTYPES[dtype]))
        self.payload = body

    @property
    def nbytes(self):
        """Bytes of the weight in memory."""
        return math.prod(self.form[0]) * self.form[1].itemsize


def _check_start(start, what):
    if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
        raise ArchiveError(f"{what} is no .kcz archive; kc.export.save_archive() writes one.")
    if len(start) < HEADER.size:
        raise ArchiveError(f"{what}: cut off in its header.")
    version = HEADER.unpack(start)[1]
    if version != VERSION:
        raise ArchiveError(
            f"{what} is of version {version} of the format, and this is a reader of version "
            f"{VERSION}. Update keras_compress."
        )


def _parse(content, limit, what):
    """`(configuration, records)` of a file; weights are not decoded."""
    cursor = Cursor(content, what)
    _, _, zero, count, stored, size, total = HEADER.unpack(unsealed(cursor, HEADER.size))
    if zero or total != len(content):
        raise ArchiveError(
            f"{what}: {len(content)} bytes, and its header says {total}; it is cut off or damaged."
        )
    if size > limit:
        raise ArchiveError(f"{what}: a configuration of {size:,} bytes is too large.")
    config = parse_config(inflated(unsealed(cursor, stored), size, what), what)
    records = []
    for number in range(count):
        name = f"{what}: weight {number}"
        cursor.what = name
        # The length is under the checksum, too, so it is read twice.
        length = LENGTH.unpack(cursor.peek(LENGTH.size))[0]
        body = Cursor(unsealed(cursor, LENGTH.size + length), name)
        body.take(LENGTH.size)
        records.append(_Record(body))
    cursor.finish()
    return config, records


def _check_forms(records, forms, what):
    """Raises `ArchiveError` unless the records are those that the model needs."""
    if len(records) != len(forms):
        raise ArchiveError(f"{what}: {len(records)} weights for a model that has {len(forms)}.")
    for record, (name, form) in zip(records, forms.items(), strict=True):
        if record.form != form:
            raise ArchiveError(
                f"{what}: '{name}' should be {form[1]} {form[0]}, and is {record.form[1]} "
                f"{record.form[0]}."
            )
