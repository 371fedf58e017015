"""Datasets in which the teacher's outputs travel with the samples."""

import keras
import numpy as np
from keras import tree

from keras_compress import validation


def is_cached(x):
    """Whether inputs bring the teacher's outputs with them."""
    return isinstance(x, dict) and set(x) == {"student", "teacher_outputs"}


class CachedDataset(keras.utils.PyDataset):
    """Batches of arrays with the teacher's outputs, see `TeacherCache.dataset`."""

    def __init__(self, cache, x, y, sample_weight, batch_size, shuffle, seed, check):
        super().__init__()
        self.teacher_cache = cache
        self._x = x
        self._rest = [part for part in (y, sample_weight) if part is not None]
        if y is None and sample_weight is not None:
            raise ValueError("TeacherCache: `sample_weight` goes with labels; got y=None.")
        lengths = {len(array) for array in tree.flatten([x, self._rest])}
        if lengths != {cache.samples}:
            raise ValueError(
                f"TeacherCache: the cache at '{cache.path}' has {cache.samples} samples; inputs, "
                f"labels and weights must have as many; got {sorted(lengths)}."
            )
        self._batch_size = validation.positive_int("batch_size", batch_size, "TeacherCache")
        self._generator = np.random.default_rng(seed) if shuffle else None
        self._check = check
        self._order = np.arange(cache.samples)
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index):
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        x = tree.map_structure(lambda array: array[rows], self._x)
        if self._check:
            self.teacher_cache.check_sums(x, rows)
        inputs = {"student": x, "teacher_outputs": self.teacher_cache.rows(rows)}
        return inputs, *(tree.map_structure(lambda a: a[rows], part) for part in self._rest)

    def on_epoch_end(self):
        if self._generator is not None:
            self._generator.shuffle(self._order)


class _Attached(keras.utils.PyDataset):
    """A PyDataset of the user, with the teacher's outputs."""

    def __init__(self, cache, dataset):
        super().__init__()
        self.teacher_cache = cache
        self._dataset = dataset

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        inputs, *rest = self._dataset[index]
        _check_keys(inputs)
        outputs = self.teacher_cache.rows(np.asarray(inputs["index"]))
        return {"student": inputs["student"], "teacher_outputs": outputs}, *rest

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


def with_outputs(cache, dataset):
    """Puts the teacher's outputs to the samples of a dataset, see `TeacherCache.attach`."""
    if isinstance(dataset, keras.utils.PyDataset):
        return _Attached(cache, dataset)
    if not hasattr(dataset, "element_spec"):
        raise ValueError(
            "TeacherCache: `dataset` must be a tf.data.Dataset or keras.utils.PyDataset; got "
            f"{type(dataset).__name__}. With arrays use cache.dataset(x, y)."
        )
    import tensorflow as tf

    arrays = list(cache.outputs.items())

    def add(inputs, *rest):
        _check_keys(inputs)
        values = tf.numpy_function(
            lambda indices: tuple(cache.rows(indices).values()),
            [inputs["index"]],
            [array.dtype for _, array in arrays],
        )
        for value, (_, array) in zip(values, arrays, strict=True):
            value.set_shape((None, *array.shape[1:]))
        outputs = dict(zip(cache.outputs, values, strict=True))
        return {"student": inputs["student"], "teacher_outputs": outputs}, *rest

    attached = dataset.map(add)
    # For `Distiller.fit`, which refuses a stale one.
    attached.teacher_cache = cache
    return attached


def _check_keys(inputs):
    if not isinstance(inputs, dict) or set(inputs) != {"index", "student"}:
        what = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise ValueError(
            "TeacherCache: a dataset to attach to must give inputs {'index': ..., 'student': ...}; "
            f"got {what}."
        )
