"""Teacher outputs on disk: one pass of the teacher over the data, whatever the epochs."""

import hashlib
import json
import os
import pathlib
import secrets
import shutil
import zlib

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.distillation.cached_dataset import CachedDataset, with_outputs
from keras_compress.distillation.pairs import extractor
from keras_compress.samples import Samples, structured

_VERSION = 1
_LARGEST_META = 10_000_000
_OUTPUT = "final_output"


def cache_teacher(teacher, data, layers=None, path="teacher_cache", batch_size=128):
    """Runs a teacher once over the data and keeps its outputs in memory-mapped files.

    A cache that is there already, of the same teacher, samples and layers, is used as it is.

    Args:
        teacher: A built Sequential or functional model, with one output.
        data: Inputs, or `(inputs, labels)`, as arrays; or an iterable of batches that come in the
            same order each time (no shuffling, no random augmentation).
        layers: Name or glob of the layers whose outputs to keep besides the teacher's own, or a
            list of them.
        path: The folder to write.
        batch_size: Rows of arrays at a time.

    Returns:
        `kc.distillation.TeacherCache`.

    Raises:
        ValueError: for data that do not fit the teacher or come in another order, unknown layers,
            and a cache at `path` that was made of something else.

    Example:

    >>> import tempfile
    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> def net(units):
    ...     return keras.Sequential([
    ...         keras.Input((16,)), keras.layers.Dense(units), keras.layers.Dense(3)
    ...     ])
    >>> teacher, student = net(64), net(8)
    >>> x, y = np.random.rand(32, 16), np.zeros((32,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = kc.distillation.cache_teacher(teacher, x, path=folder + "/cache")
    ...     distiller = kc.distillation.Distiller(teacher, student)
    ...     distiller.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ...     history = distiller.fit(cache.dataset(x, y, batch_size=8), epochs=3, verbose=0)
    """
    path = pathlib.Path(path)
    keys = [] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if len(getattr(teacher, "outputs", None) or ()) != 1:
        raise ValueError(
            "cache_teacher: `teacher` must be a Sequential or functional model with one output; "
            f"got {teacher!r}."
        )
    names = [layer.name for layer, _ in matching.resolve(keys, teacher.layers)] if keys else []
    samples = Samples(teacher, data, batch_size, owner="cache_teacher")
    sums = np.concatenate([sample_sums(inputs) for inputs, _ in samples])
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        cache = TeacherCache(path)
        cache.check_teacher(teacher)
        if not np.array_equal(cache.sums, sums) or not {_OUTPUT, *names} <= set(cache.outputs):
            raise ValueError(
                f"cache_teacher: the cache at '{path}' was made of other samples or layers "
                f"({cache.samples} samples, {', '.join(cache.outputs)}); delete it, or give "
                "another `path`."
            )
        return cache
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    temporary.mkdir(parents=True)
    try:
        _write(temporary, teacher, names, samples, sums)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return TeacherCache(path)


def _write(folder, teacher, names, samples, sums):
    model, files, row = extractor(teacher, names), {}, 0
    for inputs, _ in samples:
        stop = row + len(inputs[0])
        if not np.array_equal(sample_sums(inputs), sums[row:stop]):
            raise ValueError(
                "cache_teacher: `data` gives other samples, or another order, the second time; "
                "leave shuffling and augmentation out, a cache's dataset shuffles by itself."
            )
        outputs = model(structured(teacher, inputs), training=False)
        for place, name in enumerate([_OUTPUT, *names]):
            value = outputs[name]
            if isinstance(value, (list, tuple, dict)):
                raise ValueError(f"cache_teacher: layer '{name}' has several outputs.")
            value = keras.ops.convert_to_numpy(value)
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    folder / f"output_{place}.npy", "w+", value.dtype, (len(sums), *value.shape[1:])
                )
            files[name][row:stop] = value
        row = stop
    np.save(folder / "samples.npy", sums, allow_pickle=False)
    meta = {
        "version": _VERSION,
        "teacher": fingerprint(teacher),
        "inputs": [[tensor.name, str(tensor.dtype)] for tensor in teacher.inputs],
        "outputs": {name: [str(f.dtype), list(f.shape)] for name, f in files.items()},
    }
    for file in files.values():
        file.flush()
    (folder / "meta.json").write_text(json.dumps(meta))


class TeacherCache:
    """Outputs of a teacher, read from a folder that `cache_teacher` has written.

    Nothing in the files is run: they are a small JSON file and plain arrays, whose shapes are
    checked before a number of them is read.

    Args:
        path: The folder.

    Raises:
        ValueError: if it holds no cache, or a damaged one.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        try:
            meta_file = self.path / "meta.json"
            if meta_file.stat().st_size > _LARGEST_META:
                raise ValueError("meta.json is too large")
            meta = json.loads(meta_file.read_text())
            if meta["version"] != _VERSION:
                raise ValueError(f"version {meta['version']!r} is not known")
            self.sums = self._load("samples.npy", "uint32", None)
            self.samples = len(self.sums)
            self.outputs = {
                name: self._load(f"output_{place}.npy", dtype, tuple(shape))
                for place, (name, (dtype, shape)) in enumerate(meta["outputs"].items())
            }
            self.fingerprint = str(meta["teacher"])
            self._inputs = [(str(name), np.dtype(dtype)) for name, dtype in meta["inputs"]]
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"TeacherCache: there is no teacher cache at '{path}', or it is damaged ({error}); "
                "write it with cache_teacher() again."
            ) from None

    def _load(self, name, dtype, shape):
        array = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        rows = (
            array.ndim == 1 if shape is None else array.shape == shape and shape[0] == self.samples
        )
        if array.dtype != np.dtype(dtype) or not rows:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
        return array

    def check_teacher(self, teacher):
        """Raises `ValueError` if the weights of a teacher are not those that the cache is of."""
        if fingerprint(teacher) != self.fingerprint:
            raise ValueError(
                f"TeacherCache: the cache at '{self.path}' is stale: the weights of teacher "
                f"'{teacher.name}' are not those that it was made with. Delete it and call "
                "cache_teacher() again, or give another `path`."
            )

    def check_sums(self, x, indices):
        """Raises `ValueError` if samples are not those that the cache has at their indices."""
        inputs = (
            [x[name] for name, _ in self._inputs] if isinstance(x, dict) else keras.tree.flatten(x)
        )
        if len(inputs) != len(self._inputs):
            raise ValueError(
                f"TeacherCache: the teacher had {len(self._inputs)} inputs; got {len(inputs)}."
            )
        inputs = [np.asarray(a, dtype) for a, (_, dtype) in zip(inputs, self._inputs, strict=True)]
        wrong = np.flatnonzero(sample_sums(inputs) != self.sums[indices])
        if len(wrong):
            raise ValueError(
                f"TeacherCache: sample {indices[wrong[0]]} is not the one that the cache at "
                f"'{self.path}' was made of. Give the same samples in the same order, or "
                "check=False if the student sees another form of them."
            )

    def rows(self, indices):
        """The teacher's outputs for some samples.

        Args:
            indices: Places of the samples in the data of `cache_teacher`, integers `(batch,)`.

        Returns:
            Dict from layer names to arrays `(batch, ...)`; `"final_output"` is the output.

        Raises:
            ValueError: for an index outside of it.
        """
        indices = np.asarray(indices)
        whole = indices.ndim == 1 and np.issubdtype(indices.dtype, np.integer)
        if not whole or (len(indices) and not 0 <= indices.min() <= indices.max() < self.samples):
            raise ValueError(
                f"TeacherCache: indices must be integers from 0 to {self.samples - 1}, of shape "
                f"(batch,); got {indices!r}."
            )
        return {name: np.asarray(array[indices]) for name, array in self.outputs.items()}

    def dataset(
        self, x, y=None, sample_weight=None, batch_size=32, shuffle=True, seed=None, check=True
    ):
        """A dataset for `Distiller.fit` in which the teacher's outputs travel with the samples.

        Args:
            x: The student's inputs, arrays in the order of the data of `cache_teacher`.
            y: Labels, or `None`.
            sample_weight: Weights of the samples, or `None`.
            batch_size: Rows of a batch.
            shuffle: Whether the order is a new one in each epoch.
            seed: Integer, for an order that can be repeated.
            check: Whether each batch is compared with what the teacher saw.

        Returns:
            A `keras.utils.PyDataset`.
        """
        return CachedDataset(self, x, y, sample_weight, batch_size, shuffle, seed, check)

    def attach(self, dataset):
        """Puts the teacher's outputs to the samples of a dataset of your own.

        Args:
            dataset: A batched `tf.data.Dataset` or `keras.utils.PyDataset` of
                `({"index": ..., "student": inputs}, labels, ...)`, in any order; the index is the
                sample's place in the data of `cache_teacher`.

        Returns:
            A dataset of the same kind, for `Distiller.fit`.
        """
        return with_outputs(self, dataset)


def fingerprint(model):
    """A hash of a model's weights."""
    digest = hashlib.sha256()
    for weight in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        digest.update(f"{value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def sample_sums(inputs):
    """A checksum of each sample, uint32 `(batch,)`, of a list of input arrays."""
    sums = np.zeros(len(inputs[0]), "uint32")
    for array in inputs:
        rows = np.ascontiguousarray(array)
        sums = [
            zlib.crc32(row.tobytes(), int(before)) for row, before in zip(rows, sums, strict=True)
        ]
    return np.array(sums, "uint32")


def check_cached(dataset, distiller):
    """Raises `ValueError` for a cached dataset that a `Distiller` cannot be trained on."""
    cache = getattr(dataset, "teacher_cache", None)
    if cache is None:
        return
    if distiller.train_teacher:
        raise ValueError("Distiller: a teacher that trains has no outputs to keep; got a cache.")
    validation.one_of("inputs", distiller.inputs_kind, ("shared",), owner="Distiller with a cache")
    cache.check_teacher(distiller.teacher)
    missing = [n for n in distiller.teacher_layers if n not in cache.outputs]
    if missing:
        raise ValueError(
            f"Distiller: the cache at '{cache.path}' lacks the teacher's layers {missing}, which "
            "losses look at; call cache_teacher(layers=...) with them."
        )
