"""`LiteModel`: what an export gives back."""

import functools
import gzip
import html
import pathlib

import keras
import numpy as np

from keras_compress.export import structure
from keras_compress.export.report import layer_rows, layer_table
from keras_compress.export.timing import time_together

#: Samples that `predict` gives at once to a model whose batch axis is open.
OPEN_BATCH = 32

#: Longest input that is tried out for a model whose axes are open.
MAX_OPEN_LENGTH = 1024


class LiteModel:
    """A .tflite in memory: knows its size and operations, predicts, and can be timed.

    Made by `to_tflite`, or from a file by `LiteModel.load(path)`.

    Args:
        content: The bytes of a .tflite.
        path: The file they are also in, or `None`.
        model: The Keras model they came from, or `None`.
        quantize: The quantization asked for.
        layers: What became of each kernel that is stored in a form of its own: a list of
            `StoredLayer`.
        origin: The `report.Origin` of an export, or `None` for a file.

    Attributes:
        content: The bytes.
        path: The file, or `None`.
        model: The Keras model, or `None`.
        max_error: Largest difference to Keras on the calibration data, relative to the largest
            output; `None` if there was no such data.
        agreement: Share of calibration samples whose largest output is the same as Keras's;
            `None` likewise.
        open_length: Length that axes left open have until there is data: the smallest power of two
            that the model was found to run on.
    """

    def __init__(self, content, path=None, model=None, quantize=None, layers=(), origin=None):
        self.content = bytes(content)
        self.path = path
        self.model = model
        self.quantize = quantize
        self.layers = list(layers)
        self.origin = origin
        self.max_error = None
        self.agreement = None
        self.open_length = 1

    @classmethod
    def load(cls, path):
        """Reads a .tflite file."""
        path = pathlib.Path(path)
        return cls(path.read_bytes(), path=path)

    @classmethod
    def of(cls, source):
        """Makes a `LiteModel` of a path, of the bytes of a .tflite, or of a `LiteModel`."""
        if isinstance(source, cls):
            return source
        if isinstance(source, (bytes, bytearray, memoryview)):
            return cls(source)
        if isinstance(source, (str, pathlib.Path)):
            return cls.load(source)
        raise ValueError(
            "A .tflite is given as a LiteModel, a path or bytes; got "
            f"{type(source).__name__}. kc.export.to_tflite() makes one of a Keras model."
        )

    @property
    def name(self):
        """Name of the file, or of the Keras model; `None` if there is neither."""
        if self.path is not None:
            return pathlib.Path(self.path).name
        return None if self.model is None else self.model.name

    @property
    def nbytes(self):
        """Size of the file in bytes."""
        return len(self.content)

    @functools.cached_property
    def gzip_bytes(self):
        """Size of the file in bytes after gzip: what a download costs."""
        return len(gzip.compress(self.content, 9))

    @functools.cached_property
    def ops(self):
        """Names of the operations, in the order in which they run."""
        operations = self.interpreter(delegate=False)._get_ops_details()
        return [op["op_name"] for op in operations if op["op_name"] != "DELEGATE"]

    def interpreter(self, threads=1, delegate=True, preserve=False):
        """A fresh LiteRT interpreter on this model, tensors allocated.

        Axes that the file leaves open have the length `open_length`, but for the batch's, which is
        1. `resize_tensor_input` changes them.

        Args:
            threads: Number of threads.
            delegate: Whether the XNNPACK delegate (on by default in LiteRT) may take operations.
            preserve: Whether the values of all tensors can be read after a call; only without
                delegate.
        """
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        while True:
            interpreter = Interpreter(
                model_content=self.content,
                num_threads=threads,
                experimental_op_resolver_type=OpResolverType.AUTO if delegate else plain,
                experimental_preserve_all_tensors=preserve,
            )
            is_open = _open_axes_to(interpreter, self.open_length)
            try:
                interpreter.allocate_tensors()
            except RuntimeError:
                # A convolution, say, may not fit in so short an input.
                if not is_open or self.open_length >= MAX_OPEN_LENGTH:
                    raise
                self.open_length *= 2
            else:
                return interpreter

    @functools.cached_property
    def _runner(self):
        return self.interpreter().get_signature_runner()

    @property
    def input_names(self):
        """Names of the inputs, as in the signature of the file."""
        return list(self._runner.get_input_details())

    @property
    def output_names(self):
        """Names of the outputs, as in the signature of the file."""
        return list(self._runner.get_output_details())

    def signature(self, side):
        """Inputs or outputs of the file.

        Args:
            side: `"input"` or `"output"`.

        Returns:
            List of dicts with `name`, `shape` (`None` for an open axis) and `dtype`.
        """
        details = getattr(self._runner, f"get_{side}_details")()
        return [
            {
                "name": name,
                "shape": [None if n == -1 else int(n) for n in _signature_shape(detail)],
                "dtype": np.dtype(detail["dtype"]).name,
            }
            for name, detail in details.items()
        ]

    def predict(self, x):
        """Runs the model on any number of samples.

        Args:
            x: An array `(samples, ...)`, or a list or dict of arrays for several inputs (a list is
                in the order of `input_names`). Axes that the model leaves open take any length.

        Returns:
            An array, or a dict of arrays by output name if the model has several outputs.
        """
        details = self._runner.get_input_details()
        arrays = self._by_name(x, details)
        batch = int(_signature_shape(next(iter(details.values())))[0])
        count = len(next(iter(arrays.values())))
        if count == 0:
            raise ValueError("predict: there are no samples.")
        fixed = batch != -1
        batch = batch if fixed else OPEN_BATCH
        chunks = []
        for start in range(0, count, batch):
            rows = {name: array[start : start + batch] for name, array in arrays.items()}
            short = batch - len(next(iter(rows.values()))) if fixed else 0
            if short:
                rows = {
                    name: np.concatenate([r, np.repeat(r[-1:], short, axis=0)])
                    for name, r in rows.items()
                }
            outputs = self._runner(**rows)
            chunks.append({name: out[: batch - short].copy() for name, out in outputs.items()})
        outputs = {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    @staticmethod
    def _by_name(x, details):
        if not isinstance(x, dict):
            flat = list(x) if isinstance(x, (list, tuple)) else [x]
            if len(flat) != len(details):
                raise ValueError(
                    f"predict: the model takes {len(details)} inputs ({', '.join(details)}); got "
                    f"{len(flat)}."
                )
            x = dict(zip(details, flat, strict=True))
        missing = [name for name in details if name not in x]
        if missing:
            raise ValueError(f"predict: no array for the inputs {missing}; got {list(x)}.")
        arrays = {}
        for name, detail in details.items():
            array = np.asarray(x[name], detail["dtype"])
            expected = tuple(_signature_shape(detail)[1:].tolist())
            if array.ndim != len(expected) + 1 or any(
                e not in (-1, a) for e, a in zip(expected, array.shape[1:], strict=True)
            ):
                raise ValueError(
                    f"predict: input '{name}' takes samples of shape {expected}"
                    f"{' (-1: any length)' if -1 in expected else ''}; got {array.shape[1:]}."
                )
            arrays[name] = array
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"predict: the inputs differ in their numbers of samples: {counts}.")
        return arrays

    def compare_with_keras(self, samples, reference=None):
        """Sets `max_error` and `agreement` from the Keras model's outputs on `samples`.

        Args:
            samples: List of arrays in the order of `model.inputs`.
            reference: The model to compare with, if not `model`: a copy of it in full precision.
        """
        reference = reference or self.model
        names = structure.input_names(self.model)
        ours = self.predict(dict(zip(names, samples, strict=True)))
        if not isinstance(ours, dict):
            ours = [ours]
        else:
            ours = [ours[name] for name in structure.output_names(self.model)]
        packed = keras.tree.pack_sequence_as(structure.input_structure(reference), samples)
        theirs = [
            keras.ops.convert_to_numpy(output)
            for output in keras.tree.flatten(reference(packed, training=False))
        ]
        errors, agreements = [], []
        for our, their in zip(ours, theirs, strict=True):
            scale = float(np.abs(their).max()) or 1.0
            errors.append(float(np.abs(our - their).max()) / scale)
            if their.ndim > 1 and their.shape[-1] > 1:
                agreements.append(float(np.mean(our.argmax(-1) == their.argmax(-1))))
        self.max_error = max(errors)
        self.agreement = min(agreements) if agreements else None

    def benchmark(self, *others, runs=50, threads=1):
        """Times one call, with other models in turn so that the ratios hold on a noisy machine.

        Args:
            *others: `LiteModel`s, paths or bytes to run in the same rounds.
            runs: Timed rounds.
            threads: Threads of each interpreter.

        Returns:
            A `Timing`: medians in microseconds and speed ratios to this model. It prints as a
            table.
        """
        others = [LiteModel.of(other) for other in others]
        return time_together([self, *others], runs=runs, threads=threads)

    def table(self, runs=20, threads=1):
        """What became of each layer: stored form, bytes, operation, share of latency.

        LiteRT gives Python no profile of its operations, so that each layer's are cut out and timed
        in turn: see `timing.time_parts`.

        Args:
            runs: Timed rounds for the share of latency; 0 leaves it out.
            threads: Threads of the interpreters.

        Returns:
            A `Table`. The bytes of its rows add up to those of the file.

        Raises:
            ValueError: if the model was read from a file, which does not tell the layers.
        """
        return layer_table(self, layer_rows(self, runs, threads))

    def summary(self, runs=20, threads=1):
        """Prints `table()`."""
        print(self.table(runs, threads).to_text())

    def _repr_html_(self):
        if self.origin is None:
            return f"<code>{html.escape(repr(self))}</code>"
        return self.table(runs=0).to_html()

    def __repr__(self):
        kind = self.quantize or "float32"
        where = f", {str(self.path)!r}" if self.path else ""
        return f"<LiteModel {kind}, {self.nbytes:,} bytes, {len(self.ops)} ops{where}>"


def _signature_shape(detail):
    """Shape of an input with -1 for axes that are open."""
    signature = detail["shape_signature"]
    return signature if len(signature) else detail["shape"]


def _open_axes_to(interpreter, length):
    """Gives all open axes but the batch's a length; returns whether there are any."""
    is_open = False
    for detail in interpreter.get_input_details():
        shape = _signature_shape(detail)
        if -1 in shape[1:]:
            is_open = True
            shape = [abs(shape[0]), *np.where(shape[1:] == -1, length, shape[1:])]
            interpreter.resize_tensor_input(detail["index"], shape)
    return is_open
