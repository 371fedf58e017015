"""`compare`: what compression bought, in one table."""

import dataclasses

import keras
import numpy as np

from keras_compress.export import LiteModel, time_together, to_tflite
from keras_compress.profile.macs import macs
from keras_compress.profile.storage import storage_bits
from keras_compress.tables import Table


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurements of one model.

    Attributes:
        name: Its key in the dict given to `compare`.
        parameters: Weights of the Keras model.
        storage_bits: Bits that those need in their stored form.
        macs: Multiply-accumulates of one sample.
        tflite_bytes: Size of the .tflite.
        gzip_bytes: Size of the .tflite after gzip.
        latency_us: Median time of one call in microseconds.
        accuracy: Metric of the .tflite on the data (not of the Keras model); `None` without data.
        smaller: .tflite bytes of the first model / of this one.
        faster: Median over the paired runs of (latency of the first model / of this one).
    """

    name: str
    parameters: int | None
    storage_bits: int | None
    macs: int | None
    tflite_bytes: int
    gzip_bytes: int
    latency_us: float
    accuracy: float | None
    smaller: float
    faster: float


class Comparison:
    """The table that `compare` returns: prints as text, shows as HTML in a notebook.

    Iterating gives its `Row`s; `comparison["name"]` gives one of them.
    """

    def __init__(self, rows, threads, runs):
        self.rows = list(rows)
        self.threads = threads
        self.runs = runs

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, name):
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no model {name!r}; there are {[row.name for row in self.rows]}")

    def table(self):
        """The measurements as a `Table` of formatted cells."""
        header = [
            "model",
            "parameters",
            "stored KiB",
            "MACs",
            ".tflite KiB",
            "gzip KiB",
            "latency us",
            "accuracy",
            "smaller",
            "faster",
        ]
        body = [
            [
                row.name,
                _maybe(row.parameters, ","),
                _maybe(row.storage_bits and row.storage_bits / 8192, ",.1f"),
                _maybe(row.macs, ","),
                f"{row.tflite_bytes / 1024:,.1f}",
                f"{row.gzip_bytes / 1024:,.1f}",
                f"{row.latency_us:,.1f}",
                _maybe(row.accuracy, ".4f"),
                f"{row.smaller:,.2f}x",
                f"{row.faster:,.2f}x",
            ]
            for row in self.rows
        ]
        return Table(header, body)

    def to_pandas(self):
        """The measurements as a `pandas.DataFrame`, a row each, unformatted."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(row) for row in self.rows])

    def plot(self, path=None):
        """Draws accuracy against .tflite bytes and against latency.

        Args:
            path: Where to save the figure, or `None`.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        from matplotlib.figure import Figure

        if any(row.accuracy is None for row in self.rows):
            raise ValueError("plot: there is no accuracy to draw; give compare() the data (x, y).")
        figure = Figure(figsize=(12, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        panels = (
            (left, "tflite_bytes", ".tflite size (bytes)"),
            (right, "latency_us", "latency (µs)"),
        )
        for axis, field, label in panels:
            for i, row in enumerate(self.rows):
                marker = "*" if i == 0 else "o"
                axis.plot(
                    getattr(row, field),
                    row.accuracy,
                    marker,
                    markersize=13 if i == 0 else 7,
                    color=f"C{i % 10}",
                    label=row.name,
                )
            axis.set_xscale("log")
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
        left.set_ylabel("accuracy of the .tflite")
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
        if path is not None:
            figure.savefig(path)
        return figure

    def __repr__(self):
        plural = "s" if self.threads > 1 else ""
        return (
            f"{self.table().to_text()}\n"
            f"LiteRT, batch 1, {self.threads} thread{plural}, median of {self.runs} paired runs; "
            "accuracy of the .tflite; ratios to the first row."
        )

    def _repr_html_(self):
        return self.table().to_html()


def compare(models, data=None, metric="accuracy", runs=50, threads=1, verbose=True):
    """Exports models, runs them on stock LiteRT and tabulates what each costs.

    The models run in turn in every timed round, so that the ratios hold on a noisy machine.

    Args:
        models: Dict from a name to a Keras model, or to the `LiteModel` of an export (with the
            quantization it was made with). Ratios are to the first one.
        data: `(x, y)` to measure accuracy on, or `None`.
        metric: `"accuracy"` (largest output against integer or one-hot labels) or a function
            `(y_true, y_pred) -> float`.
        runs: Timed rounds.
        threads: Threads of the interpreters.
        verbose: Whether the table is printed.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: if `models` is empty or holds something else than models, or the metric does
            not fit the outputs.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> dense = keras.Sequential([keras.Input((256,)), keras.layers.Dense(256, name="fc")])
    >>> small = kc.convert(dense, {"fc": lambda fc: kc.layers.TTDense.from_layer(fc, rank=2)})
    >>> comparison = compare({"dense": dense, "tt": small}, verbose=False)
    >>> comparison["tt"].smaller > 5
    True
    """
    lites = _lite_models(models)
    accuracies = [None] * len(lites)
    if data is not None:
        accuracies = [_score(name, lite, data, metric) for name, lite in lites.items()]
    timing = time_together(list(lites.values()), runs=runs, threads=threads)
    first = next(iter(lites.values()))
    rows = [
        Row(
            name=name,
            parameters=lite.model.count_params() if lite.model else None,
            storage_bits=storage_bits(lite.model) if lite.model else None,
            macs=macs(lite.model) if lite.model else None,
            tflite_bytes=lite.nbytes,
            gzip_bytes=lite.gzip_bytes,
            latency_us=microseconds,
            accuracy=accuracy,
            smaller=first.nbytes / lite.nbytes,
            faster=speedup,
        )
        for (name, lite), accuracy, microseconds, speedup in zip(
            lites.items(), accuracies, timing.microseconds, timing.speedups, strict=True
        )
    ]
    comparison = Comparison(rows, threads, runs)
    if verbose:
        print(comparison)
    return comparison


def _lite_models(models):
    if not isinstance(models, dict) or not models:
        raise ValueError(
            'compare: `models` must be a dict {"name": model} with at least one model; got '
            f"{type(models).__name__}."
        )
    lites = {}
    for name, model in models.items():
        if isinstance(model, keras.Model):
            model = to_tflite(model)
        if not isinstance(model, LiteModel):
            raise ValueError(
                f"compare: {name!r} must be a keras.Model or what to_tflite() returns; got "
                f"{type(model).__name__}."
            )
        lites[name] = model
    return lites


def _score(name, lite, data, metric):
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError("compare: `data` must be a pair (x, y).")
    x, y = data
    outputs = lite.predict(x)
    if callable(metric):
        return float(metric(y, outputs))
    if metric != "accuracy":
        raise ValueError(
            'compare: `metric` must be "accuracy" or a function (y_true, y_pred) -> float; got '
            f"{metric!r}."
        )
    y = np.asarray(y)
    if isinstance(outputs, dict) or outputs.ndim < 2 or outputs.shape[-1] < 2:
        raise ValueError(
            f"compare: accuracy needs one output with a score for each class; {name!r} gives "
            f"{sorted(outputs) if isinstance(outputs, dict) else outputs.shape}. Give `metric` a "
            "function (y_true, y_pred) -> float."
        )
    labels = y.argmax(-1) if y.ndim == outputs.ndim and y.shape[-1] > 1 else y
    return float(np.mean(outputs.argmax(-1) == labels.reshape(outputs.shape[:-1])))


def _maybe(value, form):
    return "-" if value is None else format(value, form)
