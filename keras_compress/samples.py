"""Samples for what looks at a model's insides: batches of any data that `model.fit` takes."""

import keras
import numpy as np

from keras_compress import validation


class Samples:
    """Batches of `(inputs, targets)`, which can be gone through again and again.

    Args:
        model: A built model with `inputs`.
        data: An array, a list or dict of arrays as the model takes them, a pair `(x, y)` of those
            and their targets, or an iterable of batches `x`, `(x, y)` or `(x, y, weights)`.
        batch_size: Rows of a batch, where `data` is arrays.
        labels: Whether targets are needed.
        owner: Object or name that error messages begin with.
        shuffle: `numpy.random.Generator` that puts arrays in a new order at each pass; `None` to
            leave them as they are.

    Raises:
        ValueError: if there is no sample or no target, a shape is not the model's, rows differ in
            number, or a value is not finite.
    """

    def __init__(self, model, data, batch_size=64, labels=False, owner=None, shuffle=None):
        self._shuffle = shuffle
        self._prefix = validation.prefix(owner)
        self._inputs = model.inputs
        self._labels = labels
        if data is None:
            what = "(x, y)" if labels else "an array, or batches, of what the model takes"
            raise ValueError(f"{self._prefix}this needs data; give data={what}.")
        if _is_pair(data, len(model.inputs), labels):
            self._arrays = self._checked(*data)
        elif _is_array(data) or isinstance(data, dict) or _is_row(data, len(model.inputs)):
            self._arrays = self._checked(data, None)
        elif hasattr(data, "__iter__") or hasattr(data, "__getitem__"):
            self._arrays = None
        else:
            raise ValueError(
                f"{self._prefix}`data` must be arrays, (x, y) or an iterable of batches; got "
                f"{type(data).__name__}."
            )
        self._data = data
        self._batch_size = validation.positive_int("batch_size", batch_size, owner)

    def __iter__(self):
        """Yields `(list of input arrays, targets or None)`."""
        if self._arrays is not None:
            inputs, targets = self._arrays
            order = None if self._shuffle is None else self._shuffle.permutation(len(inputs[0]))
            for start in range(0, len(inputs[0]), self._batch_size):
                rows = slice(start, start + self._batch_size)
                rows = rows if order is None else order[rows]
                yield [array[rows] for array in inputs], None if targets is None else targets[rows]
            return
        empty = True
        for batch in self._batches():
            empty = False
            batch = batch if isinstance(batch, tuple) else (batch, None)
            yield self._checked(batch[0], batch[1] if len(batch) > 1 else None)
        if empty:
            raise ValueError(
                f"{self._prefix}`data` gives no batch. A generator can be gone through once only: "
                "give a list of batches, a tf.data.Dataset or a PyDataset."
            )

    def _batches(self):
        if hasattr(self._data, "__iter__"):
            return iter(self._data)
        return (self._data[index] for index in range(len(self._data)))

    def _checked(self, x, y):
        if isinstance(x, dict):
            missing = [t.name for t in self._inputs if t.name not in x]
            if missing:
                raise ValueError(f"{self._prefix}`data` has no samples for the inputs {missing}.")
            x = [x[tensor.name] for tensor in self._inputs]
        arrays = [_numpy(array) for array in keras.tree.flatten(x)]
        if len(arrays) != len(self._inputs):
            raise ValueError(
                f"{self._prefix}the model takes {len(self._inputs)} inputs; `data` has "
                f"{len(arrays)} arrays."
            )
        arrays = [self._input(*pair) for pair in zip(arrays, self._inputs, strict=True)]
        targets = None if y is None else _numpy(y)
        if targets is None and self._labels:
            raise ValueError(f"{self._prefix}this needs targets; give data=(x, y).")
        counts = {len(array) for array in arrays} | (
            {len(targets)} if targets is not None else set()
        )
        if len(counts) > 1:
            raise ValueError(
                f"{self._prefix}inputs and targets of `data` must have the same number of rows; "
                f"got {sorted(counts)}."
            )
        return arrays, targets

    def _input(self, array, tensor):
        expected = tuple(tensor.shape[1:])
        if array.ndim != len(expected) + 1 or any(
            size not in (None, given)
            for size, given in zip(expected, array.shape[1:], strict=False)
        ):
            raise ValueError(
                f"{self._prefix}samples for input '{tensor.name}' must have the shape (samples, "
                f"{', '.join(map(str, expected))}); got {array.shape}."
            )
        if not len(array):
            raise ValueError(f"{self._prefix}`data` has no samples.")
        array = array.astype(tensor.dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"{self._prefix}samples for input '{tensor.name}' hold NaN or infinite values; "
                "leave those rows out."
            )
        return array


def structured(model, inputs):
    """A list with something for each input of a model, nested as the model takes its inputs."""
    if isinstance(model, keras.Sequential):
        return inputs[0]
    return keras.tree.pack_sequence_as(model.input, inputs)


def _is_array(value):
    return hasattr(value, "shape") and not hasattr(value, "element_spec")


def _is_row(data, inputs):
    """Whether data is a list of an array for each input; another list is one of batches."""
    whole = isinstance(data, (list, tuple)) and len(data) == inputs
    return whole and all(_is_array(array) for array in data)


def _is_pair(data, inputs, labels):
    """Whether data is `(x, y)`; a tuple of as many arrays as a model has inputs is not."""
    if not isinstance(data, tuple) or len(data) != 2 or not _is_array(data[1]):
        return False
    return labels or inputs != 2 or not _is_array(data[0])


def _numpy(array):
    return keras.ops.convert_to_numpy(array) if hasattr(array, "shape") else np.asarray(array)
