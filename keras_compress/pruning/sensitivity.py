"""`sensitivity`: what the model loses when each layer alone loses channels."""

import dataclasses

import keras
import numpy as np

from keras_compress import validation
from keras_compress.pruning import criteria
from keras_compress.pruning.choice import select
from keras_compress.pruning.masked_copies import MaskedCopies
from keras_compress.tables import Table


@dataclasses.dataclass(frozen=True)
class SensitivityRow:
    """One measurement.

    Attributes:
        name: The layer; several joined by " + " if their channels stay or go together.
        share: Share of its channels that is gone.
        metric: The metric of the whole model.
    """

    name: str
    share: float
    metric: float


class Sensitivity:
    """Curves of a metric over the share of channels that a layer loses, a curve a layer.

    Attributes:
        rows: List of `SensitivityRow`.
        whole: The metric of the unpruned model.
        monitor: Name of the metric.
    """

    def __init__(self, rows, whole, monitor):
        self.rows = rows
        self.whole = whole
        self.monitor = monitor

    @property
    def curves(self):
        """Dict from layer name to `(shares, metrics)`, arrays."""
        curves = {}
        for row in self.rows:
            curves.setdefault(row.name, []).append((row.share, row.metric))
        return {name: tuple(np.array(curve).T) for name, curve in curves.items()}

    def table(self):
        """A row a layer, a column a share."""
        shares = list(dict.fromkeys(row.share for row in self.rows))
        body = [
            [name, *(f"{metric:.4f}" for metric in metrics)]
            for name, (_, metrics) in self.curves.items()
        ]
        title = f"{self.monitor} of the model ({self.whole:.4f} unpruned)"
        return Table(["layer", *(f"{share:.0%} gone" for share in shares)], body, title=title)

    def to_pandas(self):
        """The measurements as a `pandas.DataFrame`, a row each, unformatted."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(row) for row in self.rows])

    def plot(self, path=None):
        """Draws the curves.

        Args:
            path: Where to save the figure, or `None`.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axis = figure.subplots()
        axis.axhline(self.whole, color="gray", linestyle="--", label="unpruned")
        for name, (shares, metrics) in self.curves.items():
            axis.plot(shares, metrics, "o-", markersize=4, label=name)
        axis.set_xlabel("share of the layer's channels that is gone")
        axis.set_ylabel(self.monitor)
        axis.grid(alpha=0.3)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
        if path is not None:
            figure.savefig(path)
        return figure

    def __repr__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def sensitivity(
    model,
    data,
    criterion="l1",
    shares=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *,
    layers=None,
    monitor=None,
    batch_size=256,
    verbose=1,
):
    """Prunes one layer after the other, each alone, and measures what the model loses.

    Layers whose curves stay flat can lose many channels. The model is evaluated `1 + L * shares`
    times, on one copy of it under masks, which give the outputs of the cut model.

    Args:
        model: A built and compiled Sequential or functional model. It is not changed.
        data: `(x, y)`, or batches of both: what `model.evaluate` takes.
        criterion: An object of `kc.pruning.criteria`, or its name: which channels go first.
        shares: Shares of a layer's channels to remove, each in (0, 1).
        layers: Names, globs, classes, layers or predicates; `None` for all.
        monitor: Name of a metric of the model; `None`: `"accuracy"` if it has it, else `"loss"`.
        batch_size: Rows of `data` at a time.
        verbose: 1 for a progress bar.

    Returns:
        A `Sensitivity`: prints as a table, `plot()` draws it.

    Raises:
        ValueError: if the model has no graph or is not compiled, a share is out of range, or
            `layers` matches nothing.

    Reference:
        Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(2),
    ... ])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("adam", loss, metrics=["accuracy"])
    >>> data = np.random.rand(32, 8, 8, 1), np.arange(32) % 2
    >>> curves = kc.pruning.sensitivity(model, data, shares=[0.25, 0.5], verbose=0).curves
    >>> list(curves), len(curves["conv"][0])
    (['conv'], 2)
    """
    shares = [
        validation.number(f"shares[{i}]", s, 0, 1, low_open=True, high_open=True)
        for i, s in enumerate(shares)
    ]
    copies = MaskedCopies(model, data, "filter", 0.0, monitor, batch_size, "sensitivity")
    criterion = criteria.get(criterion)
    graph = copies.graph
    scores = criterion(graph, layers, data, batch_size=batch_size)
    whole = copies.metric(np.ones(graph.count, bool))
    parts = graph.consumers if scores.granularity == "channel" else graph.producers
    parts = [part for part in parts if part.name in scores]
    groups = {
        group: {p.name: scores[p.name] for p in parts if np.isin(p.channels, group.channels).any()}
        for group in graph.groups
        if not group.normalized
    }
    groups = {group: own for group, own in groups.items() if own}
    bar = keras.utils.Progbar(len(groups) * len(shares), verbose=verbose, unit_name="mask")
    rows = []
    for group, own in groups.items():
        own = criteria.Scores(own, scores.granularity)
        for share in shares:
            kept = select(graph, own, share, scope="layer")
            # A layer may read channels of several groups.
            kept[np.setdiff1d(np.arange(graph.count), group.channels)] = True
            rows.append(SensitivityRow(group.name, share, copies.metric(kept)))
            bar.add(1)
    return Sensitivity(rows, whole, copies.monitor)
