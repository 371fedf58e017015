"""Every stored form of a kernel against the float32 layer of the same shape, in one run.

    python benchmarks/storage.py [--runs 20] [--repeats 3]

LiteRT, batch 1, one thread; the two models of a row run in turn in every round. The kernels are
those of stock Keras layers, exported with storage="compact" (few values) or "auto" (zeros).
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import FOLDER, machine, publish

import keras_compress as kc
from keras_compress.tables import Table

BINARY = (-1, 1)
TERNARY = (-1, 0, 1)
TWO_BIT = (-2, -1, 0, 1)
# Symmetric, since -8 is left to int8: see `GridKernel.bits`.
FOUR_BIT = tuple(range(-7, 8))


class Case:
    """One kernel in one stored form.

    Args:
        layer: Function that makes the stock layer.
        shape: Of one input.
        draw: Function `(rng, kernel shape) -> kernel`, or `None` if `make` is given.
        make: Function that makes a layer of another class in place of the stock one.
        asked: `(smaller, faster)` that issue 3 asks for, `None` where it does not.
        first_call: Milliseconds that the first call may take, or `None`.
        options: Of `to_tflite`.
    """

    def __init__(
        self, layer, shape, draw=None, make=None, asked=(None, None), first_call=None, **options
    ):
        self.layer = layer
        self.shape = shape
        self.draw = draw
        self.make = make
        self.asked = asked
        self.first_call = first_call
        self.options = options

    def model(self):
        """The Keras model of the compressed kernel."""
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input(self.shape), (self.make or self.layer)()])
        if self.draw is not None:
            kernel = model.layers[0].kernel
            kernel.assign(self.draw(np.random.default_rng(0), tuple(kernel.shape)))
        return model

    def reference(self):
        """The stock layer with a kernel like any other."""
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input(self.shape), self.layer()])


def levels(integers, step=0.02):
    """Kernels of integers times a step."""
    return lambda rng, shape: (step * rng.choice(integers, shape)).astype("float32")


def codebook(entries):
    """Kernels of a few values that lie on no grid."""

    def draw(rng, shape):
        values = (0.05 * rng.normal(size=entries)).astype("float32")
        return rng.choice(values, shape)

    return draw


def sparse(sparsity):
    """Normal kernels without their smallest entries."""

    def draw(rng, shape):
        kernel = rng.normal(scale=0.02, size=shape).astype("float32")
        return np.where(np.abs(kernel) < np.quantile(np.abs(kernel), sparsity), 0, kernel)

    return draw


def dense(size, draw=None, **options):
    return Case(lambda: keras.layers.Dense(size), (size,), draw, **options)


def pointwise(draw, **options):
    return Case(lambda: keras.layers.Conv2D(512, 1), (14, 14, 256), draw, **options)


def conv(draw, **options):
    return Case(lambda: keras.layers.Conv2D(256, 3, padding="same"), (14, 14, 256), draw, **options)


COMPACT = {"storage": "compact"}
SMALLEST = {"storage": "compact", "optimize_for": "size"}

#: Rows of one stock layer stand together: its export is kept from one to the next.
CASES = {
    "ternary Dense 1024": dense(1024, levels(TERNARY), asked=(15, 4.5), **COMPACT),
    "ternary Dense 1024, size": dense(1024, levels(TERNARY), **SMALLEST),
    "binary Dense 1024": dense(1024, levels(BINARY), asked=(15, 4.5), **COMPACT),
    "binary Dense 1024, size": dense(1024, levels(BINARY), **SMALLEST),
    "4-bit Dense 1024": dense(1024, levels(FOUR_BIT), **COMPACT),
    "16-value codebook Dense 1024": dense(
        1024, codebook(16), asked=(7.5, 1 / 4), first_call=10, **COMPACT
    ),
    "ternary Dense 4096": dense(4096, levels(TERNARY), asked=(15.5, 8), **COMPACT),
    "ternary Dense 4096, size": dense(4096, levels(TERNARY), **SMALLEST),
    "binary Dense 4096": dense(4096, levels(BINARY), **COMPACT),
    "binary Dense 4096, size": dense(4096, levels(BINARY), **SMALLEST),
    "4-bit Dense 4096": dense(4096, levels(FOUR_BIT), asked=(7.9, 14), **COMPACT),
    "HashedDense 1/64, 4096": dense(
        4096,
        make=lambda: kc.layers.HashedDense(4096, compression=1 / 64),
        asked=(55, 1 / 5),
    ),
    "80 % zeros Dense 4096": dense(4096, sparse(0.8)),
    "90 % zeros Dense 4096": dense(4096, sparse(0.9)),
    "95 % zeros Dense 4096": dense(4096, sparse(0.95)),
    "4-bit 1x1 conv": pointwise(levels(FOUR_BIT), asked=(7, 2.5), **COMPACT),
    "ternary 1x1 conv": pointwise(levels(TERNARY), asked=(12.5, 1.3), **COMPACT),
    "4-bit 3x3 conv": conv(levels(FOUR_BIT), **COMPACT),
    "4-bit 3x3 conv, size": conv(levels(FOUR_BIT), **SMALLEST),
    "2-bit 3x3 conv, size": conv(levels(TWO_BIT), **SMALLEST),
    "ternary 3x3 conv": conv(levels(TERNARY), **COMPACT),
    "ternary 3x3 conv, size": conv(levels(TERNARY), **SMALLEST),
}


def first_call(lite, repeats=5):
    """Median milliseconds of the first call of a fresh interpreter, decoding included."""
    times = []
    for _ in range(repeats):
        interpreter = lite.interpreter()
        detail = interpreter.get_input_details()[0]
        interpreter.set_tensor(detail["index"], np.ones(detail["shape"], detail["dtype"]))
        start = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def measure(name, options, reference):
    case = CASES[name]
    x = np.random.default_rng(1).normal(size=(16, *case.shape)).astype("float32")
    key = tuple(case.reference().layers[0].kernel.shape)
    if key not in reference:
        reference.clear()
        plain = kc.export.to_tflite(case.reference(), storage="dense")
        reference[key] = plain, first_call(plain)
    plain, plain_first = reference[key]
    small = kc.export.to_tflite(case.model(), calibration=x, **case.options)
    (stored,) = small.layers
    timings = [plain.benchmark(small, runs=options.runs) for _ in range(options.repeats)]
    faster = [t.speedups[1] for t in timings]
    result = {
        "kernel": name,
        "form": stored.form,
        "runs_as": stored.kernel,
        "tflite_bytes": small.nbytes,
        "gzip_bytes": small.gzip_bytes,
        "dense_tflite_bytes": plain.nbytes,
        "smaller": plain.nbytes / small.nbytes,
        "faster": float(np.median(faster)),
        "faster_each_repeat": faster,
        "microseconds": float(np.median([t.microseconds[1] for t in timings])),
        "dense_microseconds": float(np.median([t.microseconds[0] for t in timings])),
        "first_call_ms": first_call(small),
        "dense_first_call_ms": plain_first,
        "max_error": small.max_error,
        "asked": {
            "smaller": case.asked[0],
            "faster": case.asked[1],
            "first_call_ms": case.first_call,
        },
    }
    result["reached"] = reached(result)
    return result


def reached(result):
    """Whether each asked figure is met; `None` where nothing is asked."""
    asked = result["asked"]
    checks = [
        asked["smaller"] is None or result["smaller"] >= asked["smaller"],
        asked["faster"] is None or result["faster"] >= asked["faster"],
        asked["first_call_ms"] is None or result["first_call_ms"] < asked["first_call_ms"],
    ]
    return all(checks) if any(a is not None for a in asked.values()) else None


def row(result):
    asked = result["asked"]
    wanted = [f"{a:g}x" for a in (asked["smaller"], asked["faster"]) if a is not None]
    if asked["first_call_ms"] is not None:
        wanted.append(f"{asked['first_call_ms']} ms")
    spread = f"{min(result['faster_each_repeat']):.1f} to {max(result['faster_each_repeat']):.1f}"
    return [
        result["kernel"],
        result["form"],
        result["runs_as"],
        f"{result['tflite_bytes']:,}",
        f"{result['gzip_bytes']:,}",
        f"{result['microseconds']:,.0f}",
        f"{result['smaller']:.1f}x",
        f"{result['faster']:.2f}x ({spread})",
        f"{result['first_call_ms']:.1f}",
        f"{result['max_error']:.0e}",
        " / ".join(wanted),
        {None: "", True: "yes", False: "no"}[result["reached"]],
    ]


HEADER = [
    "kernel",
    "stored as",
    "runs as",
    ".tflite bytes",
    "gzip",
    "us",
    "smaller",
    "faster (spread)",
    "first call ms",
    "error",
    "asked",
    "reached",
]


def draw(results, path):
    """Draws size and speed ratios as bars, what is asked as ticks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.32 * len(results) + 1.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(results))[::-1]
    for axis, field, color in zip(panels, ("smaller", "faster"), ("C0", "C2"), strict=True):
        ratios = np.array([r[field] for r in results])
        axis.barh(places, ratios - 1, left=1, color=color, height=0.7)
        asked = [(place, r["asked"][field]) for place, r in zip(places, results, strict=True)]
        asked = [(place, value) for place, value in asked if value is not None]
        if asked:
            at, values = zip(*asked, strict=True)
            axis.plot(values, at, "|", color="black", markersize=14, mew=2, label="asked")
        for place, value in zip(places, ratios, strict=True):
            axis.annotate(
                f"{value:.1f}",
                (value, place),
                xytext=(4 if value > 1 else -4, 0),
                textcoords="offset points",
                va="center",
                ha="left" if value > 1 else "right",
                fontsize="small",
            )
        axis.axvline(1, color="gray", linewidth=1)
        axis.set_xscale("log")
        axis.margins(x=0.12, y=0.01)
        axis.set_xlabel(f"times {field} than the float32 layer")
    panels[0].set_yticks(places, [r["kernel"] for r in results])
    panels[1].legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="timed rounds of one repeat")
    parser.add_argument("--repeats", type=int, default=3, help="fresh pairs of interpreters")
    parser.add_argument("--only", default="", help="part of a row's name; nothing is published")
    options = parser.parse_args()
    print(machine(), flush=True)
    reference, results = {}, []
    for name in CASES:
        if options.only in name:
            results.append(measure(name, options, reference))
            print(results[-1], flush=True)
    table = Table(HEADER, [row(result) for result in results], align="<<<>>>>>>>>>")
    if options.only:
        print(table.to_text())
        return
    publish(
        "storage",
        table,
        results,
        "python benchmarks/storage.py",
        "Ratios to the float32 export of the stock layer in the same run; LiteRT, batch 1, one "
        f"thread, median (smallest to largest) of {options.repeats} fresh pairs of interpreters, "
        f"{options.runs} paired rounds each. 1x1 conv: 256 to 512 channels at 14x14, 3x3 conv: 256 "
        'to 256 at 14x14. `size`: `optimize_for="size"`. `first call`: of a fresh interpreter, '
        "decoding included. `error`: largest difference to Keras, relative to the largest output. "
        "`asked`: smaller / faster / first call of issue 3.\n\n"
        "![Size and speed of each stored form](results/storage.png)",
    )
    draw(results, FOLDER / "results" / "storage.png")


if __name__ == "__main__":
    main()
