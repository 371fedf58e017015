"""`LiteModel`: what an export gives back."""

import functools
import gzip
import pathlib

import keras
import numpy as np

from keras_compress.export import structure
from keras_compress.export.timing import time_together


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

    Attributes:
        content: The bytes.
        path: The file, or `None`.
        model: The Keras model, or `None`.
        max_error: Largest difference to Keras on the calibration data, relative to the largest
            output; `None` if there was no such data.
        agreement: Share of calibration samples whose largest output is the same as Keras's;
            `None` likewise.
    """

    def __init__(self, content, path=None, model=None, quantize=None, layers=()):
        self.content = bytes(content)
        self.path = path
        self.model = model
        self.quantize = quantize
        self.layers = list(layers)
        self.max_error = None
        self.agreement = None

    @classmethod
    def load(cls, path):
        """Reads a .tflite file."""
        path = pathlib.Path(path)
        return cls(path.read_bytes(), path=path)

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

    def interpreter(self, threads=1, delegate=True):
        """A fresh LiteRT interpreter on this model, tensors allocated.

        Args:
            threads: Number of threads.
            delegate: Whether the XNNPACK delegate (on by default in LiteRT) may take operations.
        """
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = Interpreter(
            model_content=self.content,
            num_threads=threads,
            experimental_op_resolver_type=OpResolverType.AUTO if delegate else plain,
        )
        interpreter.allocate_tensors()
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

    def predict(self, x):
        """Runs the model on any number of samples.

        Args:
            x: An array `(samples, ...)`, or a list or dict of arrays for several inputs (a list is
                in the order of `input_names`).

        Returns:
            An array, or a dict of arrays by output name if the model has several outputs.
        """
        details = self._runner.get_input_details()
        arrays = self._by_name(x, details)
        batch = next(iter(details.values()))["shape"][0]
        count = len(next(iter(arrays.values())))
        if count == 0:
            raise ValueError("predict: there are no samples.")
        chunks = []
        for start in range(0, count, batch):
            rows = {name: array[start : start + batch] for name, array in arrays.items()}
            short = batch - len(next(iter(rows.values())))
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
            expected = tuple(detail["shape"][1:].tolist())
            if array.shape[1:] != expected and -1 not in expected:
                raise ValueError(
                    f"predict: input '{name}' takes samples of shape {expected}; got "
                    f"{array.shape[1:]}."
                )
            arrays[name] = array
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
            *others: `LiteModel`s (or paths) to run in the same rounds.
            runs: Timed rounds.
            threads: Threads of each interpreter.

        Returns:
            A `Timing`: medians in microseconds and speed ratios to this model.
        """
        others = [o if isinstance(o, LiteModel) else LiteModel.load(o) for o in others]
        return time_together([self, *others], runs=runs, threads=threads)

    def __repr__(self):
        kind = self.quantize or "float32"
        where = f", {str(self.path)!r}" if self.path else ""
        return f"<LiteModel {kind}, {self.nbytes:,} bytes, {len(self.ops)} ops{where}>"
