"""Metadata: statistics of a trained model's activations, to be kept in place of its data."""

import io
import json
import pathlib

import keras
import numpy as np
from keras import ops

from keras_compress import matching, validation
from keras_compress.call_graph import CallGraph
from keras_compress.distillation.cache import fingerprint
from keras_compress.files import write_atomically
from keras_compress.pruning.criteria.observer import Observer, compiled, finite
from keras_compress.samples import Samples

_VERSION = 1
_KINDS = ("top", "all_layers", "spectral")
# Of fewer samples, a mean tells too much about each of them.
_FEWEST = 5
# Columns whose covariance matrix is made; of more, top layers have variances.
_WIDEST_TOP = 64
_WIDEST = 4096


def record_metadata(
    model,
    data,
    kind="spectral",
    *,
    layers=None,
    by_class=True,
    dropout=0.0,
    masks=8,
    energy=0.95,
    batch_size=256,
    seed=0,
):
    """Records statistics of a model's activations, from which samples can be made without the data.

    - `"top"`: means and covariances of the logits (variances, if there are more than 64). With
      `dropout`, those of the logits under each of `masks` fixed dropout masks on what the last
      `Dense` layer takes: they tell much more of it than the logits alone.
    - `"all_layers"`: besides, mean and variance of every unit of the layers that have weights.
    - `"spectral"`: the units of all these layers, as one graph whose edges are their covariances:
      mean and variance of the activations' coefficients in its leading eigenvectors (its Fourier
      basis), and of the energy outside of them. (The paper's edges are differences of
      activations, of which it keeps the coefficients of each sample; here no sample is kept.)

    All are of each class by itself: the class that the model predicts, so that no label is needed.
    Layers run in inference mode, in one compiled pass over the data (two for `"spectral"`, whose
    basis is the first one's result).

    Args:
        model: A built Sequential or functional model with one output.
        data: Inputs, or `(inputs, labels)`, as arrays; or an iterable of batches.
        kind: `"top"`, `"all_layers"` or `"spectral"`.
        layers: Names or globs of the layers to look at besides the logits; by default all that have
            weights.
        by_class: Whether classes are told apart. `False` for regression.
        dropout: Share of the units that a mask of the kind `"top"` drops; 0: no masks.
        masks: Number of dropout masks.
        energy: Share of the variance that the eigenvectors of the kind `"spectral"` hold, 0 to 1.
        batch_size: Rows of arrays at a time.
        seed: Integer for the masks.

    Returns:
        `kc.distillation.Metadata`.

    Raises:
        ValueError: for data that do not fit, classes with 1 to 4 samples (whose statistics would
            give them away), layers that are not there or too wide for a covariance matrix, and
            numbers out of range.

    Reference:
        R. G. Lopes, S. Fenu, T. Starner, "Data-Free Knowledge Distillation for Deep Neural
        Networks", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> teacher = keras.Sequential([
    ...     keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2)
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(200, 8))
    >>> metadata = kc.distillation.record_metadata(teacher, x, kind="all_layers", by_class=False)
    >>> synthetic = kc.distillation.synthesize(teacher, metadata, n=50, steps=20, seed=0)
    >>> synthetic.shape
    (50, 8)
    """
    owner = "record_metadata"
    validation.one_of("kind", kind, _KINDS, owner)
    rate = validation.number("dropout", dropout, 0, 1, high_open=True, owner=owner)
    energy = validation.number("energy", energy, 0, 1, low_open=True, owner=owner)
    masks = validation.positive_int("masks", masks, owner)
    if kind == "top" and layers is not None or kind != "top" and rate:
        raise ValueError(
            "record_metadata: `dropout` goes with kind='top', `layers` with the other kinds; got "
            f"kind={kind!r}, dropout={dropout!r}, layers={layers!r}."
        )
    graph = _graph(model, owner)
    names = [] if kind == "top" else _layer_names(graph, layers)
    meta = Metadata(kind, fingerprint(model), names, bool(by_class))
    if rate:
        units = _top_dense(graph).inputs[0].shape[-1]
        keep = np.random.default_rng(validation.seed(seed, owner)).random((masks, units)) >= rate
        meta.masks = (keep / (1.0 - rate)).astype("float32")
    samples = Samples(model, data, batch_size, owner=owner)
    if kind == "spectral":
        meta._find_basis(Activations(graph, meta, spectral=False), samples, energy)
    meta._record(Activations(graph, meta), samples)
    return meta


class Metadata:
    """What `record_metadata` has recorded.

    The file that `save` writes holds plain arrays (`.npz`), whose sizes do not depend on the number
    of samples; reading it runs nothing.

    Attributes:
        kind: `"top"`, `"all_layers"` or `"spectral"`.
        layers: Names of the layers inside the model whose units it is of.
        classes: Indices of the classes that came up.
        counts: Samples of each of them.
        means: For each feature (logits, layer or coefficients) an array `(classes, columns)`.
        spreads: For each feature covariances `(classes, columns, columns)`, or variances
            `(classes, columns)`.
    """

    def __init__(self, kind, model, layers, by_class):
        self.kind, self.model, self.layers, self.by_class = kind, model, layers, by_class
        self.masks = self.center = self.scale = self.basis = None
        self.classes = self.counts = self.means = self.spreads = None

    def distance(self, model, x):
        """How far the statistics of samples are from the recorded ones: what `synthesize` lowers.

        Of each class (as `model` predicts it) and feature: the squared difference of the means, and
        of the variances or covariances, in units of the recorded variance, averaged over columns;
        the mean of that over samples, summed over features.

        Args:
            model: The model that the metadata are of.
            x: Samples, as the model takes them.

        Returns:
            A number, 0 for statistics that are the same.
        """
        inputs, _ = next(iter(Samples(model, x, 2**31, owner="Metadata")))
        self.check_model(model)
        activations = Activations(_graph(model, "Metadata"), self)
        inputs = [ops.convert_to_tensor(array) for array in inputs]
        features, classes = activations(inputs)
        places = ops.convert_to_numpy(classes)[:, None] == self.classes
        if not places.any(axis=1).all():
            raise ValueError("Metadata: the model predicts classes that were not recorded.")
        return float(self.loss(features, ops.convert_to_tensor(places.astype("float32"))))

    def loss(self, features, members):
        """`distance` as a tensor.

        Args:
            features: List of tensors `(samples, columns)`, see `Activations`.
            members: Float tensor `(samples, classes)`, 1 where a sample is of a class.
        """
        count = ops.sum(members, axis=0)
        share = ops.transpose(members / ops.maximum(count, 1.0))
        weight = count / ops.sum(count)
        # One sample has no variance.
        spread_weight = ops.where(count > 1.5, weight, 0.0)
        total = 0.0
        for feature, mean, spread in zip(features, self.means, self.spreads, strict=True):
            scale = _scale(spread, self.counts)
            center = ops.matmul(share, feature)
            total += _weighted(weight, ops.square((center - _tensor(mean)) / scale))
            rest = feature - ops.matmul(members, center)
            error = (_spread(rest, share, spread.ndim == 3) - _tensor(spread)) / scale**2
            squares = ops.square(error)
            if spread.ndim == 3:
                squares = ops.sum(squares, axis=2)
            total += _weighted(spread_weight, squares)
        return total

    def check_model(self, model):
        """Raises `ValueError` if the metadata are not of a model's weights."""
        if fingerprint(model) != self.model:
            raise ValueError(
                f"Metadata: these are not of the weights that model '{model.name}' has; record "
                "them again, or give the model that they were recorded of."
            )

    def save(self, path):
        """Writes a `.npz` file, whole or not at all."""
        header = {
            "version": _VERSION,
            **{key: getattr(self, key) for key in ("kind", "model", "layers", "by_class")},
        }
        arrays = {key: getattr(self, key) for key in ("classes", "counts")}
        for key in ("masks", "center", "scale", "basis"):
            if getattr(self, key) is not None:
                arrays[key] = getattr(self, key)
        for place, pair in enumerate(zip(self.means, self.spreads, strict=True)):
            arrays[f"mean_{place}"], arrays[f"spread_{place}"] = pair
        content = io.BytesIO()
        np.savez_compressed(content, header=np.array(json.dumps(header)), **arrays)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path):
        """Reads a file that `save` has written.

        Raises:
            ValueError: if there is none, or a damaged one.
        """
        try:
            with np.load(pathlib.Path(path), allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header["version"] != _VERSION or header["kind"] not in _KINDS:
                    raise ValueError(f"version or kind of {header} is not known")
                meta = cls(*(header[key] for key in ("kind", "model", "layers", "by_class")))
                for key in (
                    "classes",
                    "counts",
                    *({"masks", "center", "scale", "basis"} & set(file)),
                ):
                    setattr(meta, key, file[key])
                places = range(sum(key.startswith("mean_") for key in file))
                meta.means = [file[f"mean_{place}"] for place in places]
                meta.spreads = [file[f"spread_{place}"] for place in places]
            meta._check_arrays()
        # zipfile has errors of its own, of no common class but Exception.
        except Exception as error:
            raise ValueError(
                f"Metadata: there are no metadata at '{path}', or they are damaged ({error}); "
                "write them with record_metadata(...).save(path)."
            ) from None
        return meta

    def _check_arrays(self):
        classes = len(self.classes)
        wrong = self.counts.shape != (classes,) or not self.means or not classes
        for mean, spread in zip(self.means, self.spreads, strict=True):
            columns = mean.shape[1:]
            shapes = ((classes, *columns), (classes, *columns, *columns))
            wrong = wrong or len(columns) != 1 or spread.shape not in shapes
        others = [a for a in (self.masks, self.center, self.scale, self.basis) if a is not None]
        if self.kind == "spectral":
            units = self.center.shape
            wrong = wrong or self.scale.shape != units
            wrong = wrong or self.basis.shape != (*units, self.means[0].shape[1])
        arrays = [self.classes, self.counts, *self.means, *self.spreads, *others]
        if wrong or not all(a.dtype.kind in "fi" and np.isfinite(a).all() for a in arrays):
            raise ValueError("arrays do not go together")

    def _find_basis(self, activations, samples, energy):
        """Sets the eigenvectors of the covariance of all units, each layer scaled to energy 1."""

        def moments(inputs, shift):
            rows = ops.concatenate(activations(inputs)[0], axis=1) - shift
            return ops.sum(rows, axis=0), ops.matmul(ops.transpose(rows), rows)

        run, shift, sums, number = compiled(moments), None, None, 0
        for inputs, _ in samples:
            inputs = [ops.convert_to_tensor(array) for array in inputs]
            if shift is None:
                parts = [ops.convert_to_numpy(f) for f in activations(inputs)[0]]
                widths = [part.shape[1] for part in parts]
                if sum(widths) > _WIDEST:
                    raise ValueError(
                        f"record_metadata: the layers have {sum(widths)} units together, and the "
                        f"covariance matrix of kind='spectral' takes {_WIDEST}; choose some by "
                        "`layers`, or use kind='all_layers'."
                    )
                shift = np.concatenate(parts, axis=1).mean(axis=0)
            found = [ops.convert_to_numpy(s).astype("float64") for s in run(inputs, shift)]
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
            number += len(inputs[0])
        center = sums[0] / number
        covariance = finite(sums[1] / number - np.outer(center, center), "covariance", "Metadata")
        layers = np.repeat(np.arange(len(widths)), widths)
        totals = np.bincount(layers, np.diag(covariance).clip(0))
        scale = 1.0 / np.sqrt(np.where(totals > 0, totals, 1.0))[layers]
        values, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
        values, vectors = values[::-1].clip(0), vectors[:, ::-1]
        count = int(np.searchsorted(np.cumsum(values), energy * values.sum() * (1 - 1e-9))) + 1
        self.center = (center + shift).astype("float32")
        self.scale = scale.astype("float32")
        self.basis = vectors[:, :count].astype("float32")

    def _record(self, activations, samples):
        number = activations.classes
        widest = _WIDEST_TOP if self.kind == "top" else 0

        def moments(inputs, shifts):
            features, classes = activations(inputs)
            members = ops.transpose(ops.one_hot(classes, number, dtype="float32"))
            rows = [f - s for f, s in zip(features, shifts, strict=True)]
            return (
                ops.sum(members, axis=1),
                [ops.matmul(members, r) for r in rows],
                [_spread(r, members, r.shape[1] <= widest) for r in rows],
            )

        run, shifts, sums = compiled(moments), None, None
        for inputs, _ in samples:
            inputs = [ops.convert_to_tensor(array) for array in inputs]
            if shifts is None:
                # Squares of large numbers around a small spread would be lost in float32.
                shifts = [ops.convert_to_numpy(f).mean(axis=0) for f in activations(inputs)[0]]
            found = keras.tree.map_structure(
                lambda t: ops.convert_to_numpy(t).astype("float64"), run(inputs, shifts)
            )
            sums = found if sums is None else keras.tree.map_structure(np.add, sums, found)
        counts, firsts, seconds = sums
        if counts.sum() < _FEWEST or ((counts > 0) & (counts < _FEWEST)).any():
            few = np.flatnonzero((counts > 0) & (counts < _FEWEST)).tolist()
            raise ValueError(
                f"record_metadata: the model predicts the classes {few} for fewer than {_FEWEST} "
                "samples each, whose statistics would give them away; give more `data`, or "
                "by_class=False."
            )
        self.classes = np.flatnonzero(counts)
        self.counts = counts[self.classes].astype("int64")
        self.means, self.spreads = [], []
        for first, second, shift in zip(firsts, seconds, shifts, strict=True):
            first, second = first[self.classes], second[self.classes]
            count = self.counts.reshape(-1, *(1,) * (second.ndim - 1))
            mean = first / self.counts[:, None]
            square = mean[:, :, None] * mean[:, None] if second.ndim == 3 else mean**2
            self.means.append(finite((mean + shift).astype("float32"), "mean", "Metadata"))
            self.spreads.append((second / count - square).astype("float32"))
            if second.ndim == 2:
                self.spreads[-1] = self.spreads[-1].clip(0)


class Activations:
    """Features of a batch that metadata are statistics of: `activations(inputs)`.

    It gives `(features, classes)`: a list of float32 tensors `(samples, columns)`, and int32
    `(samples,)`.

    Args:
        graph: `CallGraph` of the model.
        metadata: `Metadata`, whose kind, layers, masks and basis are used.
        spectral: `False`: units of layers also where the kind is `"spectral"`.
    """

    def __init__(self, graph, metadata, spectral=True):
        self._metadata = metadata
        self._spectral = spectral and metadata.kind == "spectral"
        value, self._dense = _top(graph)
        if metadata.masks is not None:
            self._dense = _top_dense(graph).operation
            value = _top_dense(graph).inputs[0]
        calls = {"/".join(call.path): call for call in graph.calls}
        missing = [name for name in metadata.layers if name not in calls]
        if missing:
            raise ValueError(f"Metadata: the model has no layers {missing}.")
        self._observer = Observer(graph, [*(calls[n].outputs[0] for n in metadata.layers), value])
        self.classes = 1
        if metadata.by_class:
            shape = keras.tree.flatten(graph.outputs)[0].shape
            if len(shape) != 2 or shape[1] is None:
                raise ValueError(
                    "Metadata: classes are told by outputs (samples, classes); this model's "
                    f"output has the shape {shape}. Use by_class=False."
                )
            self.classes = max(shape[1], 2)

    def __call__(self, inputs):
        *units, top = self._observer.run(inputs)
        units = [_rows(tensor) for tensor in units]
        logits = [_rows(self._apply(top))]
        classes = self._class(logits[0])
        if self._metadata.masks is not None:
            logits = [_rows(self._apply(top * mask)) for mask in self._metadata.masks]
        features = [*units, *logits]
        return (self._coefficients(features) if self._spectral else features), classes

    def _apply(self, tensor):
        if self._dense is None:
            return tensor
        tensor = ops.matmul(tensor, self._dense.kernel)
        return tensor if self._dense.bias is None else ops.add(tensor, self._dense.bias)

    def _class(self, logits):
        if not self._metadata.by_class:
            return ops.zeros((ops.shape(logits)[0],), "int32")
        if self.classes > logits.shape[1]:
            return ops.cast(logits[:, 0] > 0, "int32")
        return ops.cast(ops.argmax(logits, axis=1), "int32")

    def _coefficients(self, features):
        rows = ops.concatenate(features, axis=1) - self._metadata.center
        rows = rows * self._metadata.scale
        coefficients = ops.matmul(rows, self._metadata.basis)
        energy = ops.sum(ops.square(rows), axis=1, keepdims=True)
        rest = energy - ops.sum(ops.square(coefficients), axis=1, keepdims=True)
        return [coefficients, rest]


def _graph(model, owner):
    if not getattr(model, "inputs", None) or len(model.outputs) != 1:
        raise ValueError(
            f"{owner}: `model` must be a built Sequential or functional model with one output; got "
            f"{model!r}."
        )
    return CallGraph(model)


def _layer_names(graph, keys):
    """Paths of the layers with weights, or of those chosen, without the one of the logits."""
    top = _last(graph)
    calls = {
        "/".join(call.path): call
        for call in graph.calls
        if call is not top and getattr(call.operation, "weights", None)
    }
    if keys is not None:
        keys = [keys] if isinstance(keys, str) else list(keys)
        calls = {"/".join(call.path): call for call in graph.calls if call is not top}
        layers = [call.operation for call in calls.values()]
        chosen = {id(layer) for layer, _ in matching.resolve(keys, layers)}
        calls = {name: call for name, call in calls.items() if id(call.operation) in chosen}
    return list(calls)


def _last(graph):
    """The call that gives the logits."""
    call = keras.tree.flatten(graph.outputs)[0].call
    while (
        call is not None and _is_softmax(call.operation) and not hasattr(call.operation, "kernel")
    ):
        call = call.inputs[0].call
    return call


def _is_softmax(operation):
    if type(operation).__name__ in ("Softmax", "Sigmoid"):
        return True
    activation = getattr(operation, "activation", None)
    return activation in (keras.activations.softmax, keras.activations.sigmoid)


def _top(graph):
    """The value that holds the logits, or the input of the `Dense` layer that gives them."""
    call = _last(graph)
    if call is None or not _is_softmax(call.operation):
        return (graph.inputs[0] if call is None else call.outputs[0]), None
    if type(call.operation) is not keras.layers.Dense:
        raise ValueError(
            f"Metadata: layer '{call.operation.name}' ({type(call.operation).__name__}) gives "
            "probabilities, and its logits cannot be had; use a layer without activation, followed "
            "by keras.layers.Softmax()."
        )
    return call.inputs[0], call.operation


def _top_dense(graph):
    call = _last(graph)
    if call is None or type(call.operation) is not keras.layers.Dense:
        raise ValueError(
            "record_metadata: `dropout` needs a model whose logits are of a keras.layers.Dense."
        )
    return call


def _rows(tensor):
    tensor = ops.cast(tensor, "float32")
    return ops.reshape(tensor, (ops.shape(tensor)[0], int(np.prod(tensor.shape[1:]))))


def _spread(rows, members, full):
    """Sums of squares, or of products, weighted by `members` `(classes, samples)`."""
    if full:
        return ops.einsum("cn,nd,ne->cde", members, rows, rows)
    return ops.matmul(members, ops.square(rows))


def _scale(spread, counts):
    """One standard deviation for all columns: within the classes, a class as often as it came."""
    variances = np.diagonal(spread, axis1=1, axis2=2) if spread.ndim == 3 else spread
    mean = float(np.average(variances.mean(axis=1), weights=counts))
    return max(mean, 1e-12) ** 0.5


def _weighted(weight, squares):
    return ops.sum(weight * ops.mean(squares, axis=1))


def _tensor(array):
    return ops.convert_to_tensor(array, dtype="float32")
