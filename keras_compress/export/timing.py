"""Latency on stock LiteRT, measured so that a ratio means something on a noisy machine."""

import dataclasses
import time

import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """Latency of several models that ran in turn.

    Attributes:
        microseconds: Median time of one call, a model each.
        speedups: Median over the rounds of (time of the first model / time of this one).
        runs: Rounds counted.
        threads: Threads of each interpreter.
    """

    microseconds: tuple
    speedups: tuple
    runs: int
    threads: int


def time_together(models, runs=50, threads=1, seed=0):
    """Times models in interleaved rounds: each round runs every model.

    A quick model is repeated within a round, so that each measures about a millisecond at least:
    shorter ones would mostly time the call from Python.

    Args:
        models: `LiteModel`s.
        runs: Timed rounds.
        threads: Threads of each interpreter.
        seed: Of the random inputs.

    Returns:
        A `Timing`.
    """
    calls = [_prepare(model, threads, seed) for model in models]
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
    return Timing(
        microseconds=tuple(float(t) for t in np.median(times, axis=0) * 1e6),
        speedups=tuple(float(r) for r in np.median(times[:, :1] / times, axis=0)),
        runs=runs,
        threads=threads,
    )


def _prepare(model, threads, seed):
    interpreter = model.interpreter(threads)
    rng = np.random.default_rng(seed)
    for detail in interpreter.get_input_details():
        shape, dtype = detail["shape"], detail["dtype"]
        # Zeros are valid in any vocabulary; random integers may not be.
        random = np.issubdtype(dtype, np.floating)
        values = rng.normal(size=shape) if random else np.zeros(shape)
        interpreter.set_tensor(detail["index"], values.astype(dtype))
    return interpreter.invoke
