"""Latency on stock LiteRT, measured so that a ratio means something on a noisy machine."""

import dataclasses
import time

import numpy as np

from keras_compress import validation
from keras_compress.export.flatbuffer import Flatbuffer
from keras_compress.tables import Table

#: Interpreters of each model that share the timed rounds.
_INTERPRETERS = 5


@dataclasses.dataclass(frozen=True)
class Timing:
    """Latency of several models that ran in turn.

    Attributes:
        microseconds: Median time of one call, a model each.
        speedups: Median over the rounds of (time of the first model / time of this one).
        runs: Rounds counted.
        threads: Threads of each interpreter.
        names: What each model is called in the table.
        nbytes: Size of each model's file in bytes.
    """

    microseconds: tuple
    speedups: tuple
    runs: int
    threads: int
    names: tuple
    nbytes: tuple

    def table(self):
        """The measurements as a `Table`, ratios to the first model."""
        rows = [
            [
                name,
                f"{nbytes:,}",
                f"{self.nbytes[0] / nbytes:,.2f}x",
                f"{microseconds:,.1f}",
                f"{speedup:,.2f}x",
            ]
            for name, nbytes, microseconds, speedup in zip(
                self.names, self.nbytes, self.microseconds, self.speedups, strict=True
            )
        ]
        return Table(["file", "bytes", "smaller", "median us", "faster"], rows)

    def __str__(self):
        plural = "s" if self.threads > 1 else ""
        return (
            f"{self.table().to_text()}\n"
            f"LiteRT, {self.threads} thread{plural}, {self.runs} paired runs; ratios to the first "
            "row."
        )

    def _repr_html_(self):
        return self.table().to_html()


def time_together(models, runs=50, threads=1, seed=0):
    """Times models in interleaved rounds: each round runs every model.

    A quick model is repeated within a round, so that each measures about a millisecond at least:
    shorter ones would mostly time the call from Python. Where an interpreter's memory happens to
    lie makes some of them up to twice as slow as others of the same file: each model gets several,
    one after the other.

    Args:
        models: `LiteModel`s.
        runs: Timed rounds.
        threads: Threads of each interpreter.
        seed: Of the random inputs.

    Returns:
        A `Timing`.
    """
    validation.positive_int("runs", runs, "benchmark")
    validation.positive_int("threads", threads, "benchmark")
    times = np.concatenate(
        [
            _rounds([_prepare(model, threads, seed) for model in models], len(part))
            for part in np.array_split(np.arange(runs), min(runs, _INTERPRETERS))
        ]
    )
    return Timing(
        microseconds=tuple(float(t) for t in np.median(times, axis=0) * 1e6),
        speedups=tuple(float(r) for r in np.median(times[:, :1] / times, axis=0)),
        runs=runs,
        threads=threads,
        names=_names(models),
        nbytes=tuple(model.nbytes for model in models),
    )


def _rounds(calls, runs):
    """Seconds of each call in each round, an array `(runs, calls)`."""
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        for _ in range(3):
            call()
        once = (time.perf_counter() - start) / 3
        repeats.append(max(1, min(200, int(1e-3 / max(once, 1e-7)))))
    times = np.empty((runs, len(calls)))
    for row in times:
        for i, (call, repeat) in enumerate(zip(calls, repeats, strict=True)):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            row[i] = (time.perf_counter() - start) / repeat
    return times


def time_parts(model, parts, runs=20, threads=1, seed=0):
    """Times parts of a model, each cut out of it, one after the other in every round.

    LiteRT's interpreter gives Python no profile of its operations. Cut out, a part computes on the
    values that it has in the whole model; and in turn with the others, since weights that do not
    all fit in a cache are not to be found there either. What the whole model gains by never leaving
    a delegate between two layers is lost: about a microsecond a part.

    Args:
        model: A `LiteModel`.
        parts: Dict from a key to indices of operations of the main graph.
        runs: Timed rounds.
        threads: Threads of each interpreter.
        seed: Of the random inputs.

    Returns:
        Dict from each key to the median seconds of its part.
    """
    values = _intermediate_values(model, seed)
    calls = {}
    for key, indices in parts.items():
        interpreter, inputs = _cut(model, indices, values, threads)
        for index, value in inputs:
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        calls[key] = interpreter.invoke
    times = {key: [] for key in calls}
    for _ in range(runs):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - start)
    return {key: float(np.median(seconds)) for key, seconds in times.items()}


def _intermediate_values(model, seed):
    """Function from the index of a tensor to its value, for random inputs."""
    interpreter = model.interpreter(delegate=False, preserve=True)
    _set_random_inputs(interpreter, seed)
    interpreter.invoke()
    return interpreter.get_tensor


def unpacking_operators(flatbuffer, graph):
    """Operations that unpack a constant, which LiteRT does at load.

    Returns:
        Dict from the tensor that each gives to the operation.
    """
    return {
        int(operator.outputs[0]): operator
        for operator in graph.operators
        if flatbuffer.name_of(operator) in ("DEQUANTIZE", "DENSIFY")
        and flatbuffer.data(graph.tensor(operator.inputs[0])) is not None
    }


def _cut(model, indices, values, threads):
    """An interpreter of some operations of a model, and what to feed it: `[(index, value)]`."""
    flatbuffer = Flatbuffer(model.content)
    graph = flatbuffer.main
    chosen = [graph.operators[index] for index in indices]
    rest = [o for i, o in enumerate(graph.operators) if i not in set(indices)]
    read = _inputs(chosen)
    unpacking = [o for i, o in unpacking_operators(flatbuffer, graph).items() if i in read]
    # Constants that variables are made of are decoded in a subgraph of their own.
    setup = [
        operator
        for operator in graph.operators
        if flatbuffer.name_of(operator) == "CALL_ONCE"
        and any(flatbuffer.name_of(one) == "READ_VARIABLE" for one in chosen)
    ]
    made = {int(i) for operator in (*chosen, *unpacking) for i in operator.outputs}
    inputs = sorted(i for i in read - made if flatbuffer.data(graph.tensor(i)) is None)
    fed = [values(i) for i in inputs]
    outputs = made & (_inputs(rest) | set(map(int, graph.graph.outputs)))
    for i in (*inputs, *(made & _inputs(chosen)), *outputs):
        tensor = graph.tensor(i)
        # Open axes have the length that they had in the whole model.
        if tensor.shapeSignature is not None and -1 in tensor.shapeSignature:
            tensor.shape, tensor.shapeSignature = list(values(i).shape), None
    graph.graph.operators = [*setup, *unpacking, *chosen]
    graph.graph.inputs = np.array(inputs, np.int32)
    graph.graph.outputs = np.array(sorted(outputs), np.int32)
    flatbuffer.model.signatureDefs = []
    interpreter = type(model)(flatbuffer.to_bytes()).interpreter(threads)
    details = interpreter.get_input_details()
    return interpreter, [(d["index"], value) for d, value in zip(details, fed, strict=True)]


def _inputs(operators):
    return {int(i) for operator in operators for i in operator.inputs if i >= 0}


def _names(models):
    names = []
    for number, model in enumerate(models, 1):
        name = base = model.name or f"model {number}"
        if name in names:
            name = f"{base} ({number})"
        names.append(name)
    return tuple(names)


def _prepare(model, threads, seed):
    interpreter = model.interpreter(threads)
    _set_random_inputs(interpreter, seed)
    return interpreter.invoke


def _set_random_inputs(interpreter, seed):
    rng = np.random.default_rng(seed)
    for detail in interpreter.get_input_details():
        shape, dtype = detail["shape"], detail["dtype"]
        # Zeros are valid in any vocabulary; random integers may not be.
        random = np.issubdtype(dtype, np.floating)
        values = rng.normal(size=shape) if random else np.zeros(shape)
        interpreter.set_tensor(detail["index"], values.astype(dtype))
