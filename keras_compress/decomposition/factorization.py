"""What `factorize` returns: the factorized model and a report on it."""

import dataclasses
import math

from keras_compress.tables import Table


@dataclasses.dataclass(frozen=True)
class FactorizedLayer:
    """What became of one layer.

    Attributes:
        layer: Its name.
        form: Form of the factors, or `None` if the layer stays as it is.
        rank: Tuple of ranks.
        error: Relative error in the measure of the objective, a root of a ratio of squares: of the
            kernel (for `"gradient"` weighted), or of the responses on the samples (after ReLU where
            one follows; for `"response"` and `"response_asym"` against their variance).
        macs_before: Multiply-accumulates of a sample; `None` where a shape is open.
        macs_after: The same, factorized.
        params_before: Number of weights of the kernel.
        params_after: The same, factorized; of ternary factors, of floats that take as much room.
    """

    layer: str
    form: str | None
    rank: tuple
    error: float
    macs_before: int | None
    macs_after: int | None
    params_before: int
    params_after: int

    @classmethod
    def kept(cls, site):
        """Of a `Site` that stays as it is."""
        macs, params = site.cost("macs"), site.cost("params")
        return cls(site.name, None, (), 0.0, macs, macs, params, params)

    @classmethod
    def of(cls, site, layer, form, rank, error):
        """Of a `Site` and the layer that takes its place."""
        macs = site.cost("macs")
        after = None if macs is None else sum(layer.macs(c.inputs[0].shape) for c in site.calls)
        params = sum(math.prod(weight.shape) for weight in layer.kernel_weights)
        if form == "ternary":
            params = -(-layer.kernel_bits() // 32)
        return cls(site.name, form, rank, float(error), macs, after, site.cost("params"), params)


class Factorization:
    """A factorized model and what became of its layers: prints as a table.

    Args:
        model: The model as it was.
        factorized: The factorized one.
        layers: List of `FactorizedLayer`.

    Attributes:
        model: The factorized model.
        layers: A `FactorizedLayer` for each layer that was looked at.
        macs_before: Multiply-accumulates of a sample through the whole model; `None` if a shape is
            open.
        macs_after: The same, factorized.
        params_before: Number of weights of the whole model.
        params_after: The same, factorized.
    """

    def __init__(self, model, factorized, layers):
        # Above this floor.
        from keras_compress.profile.macs import macs

        self.model = factorized
        self.layers = list(layers)
        known = all(row.macs_before is not None for row in self.layers)
        self.macs_before, self.macs_after = (
            (macs(model), macs(factorized)) if known else (None, None)
        )
        self.params_before, self.params_after = model.count_params(), factorized.count_params()

    def table(self):
        """A row for each layer, and one for the model."""
        rows = [
            [
                row.layer,
                row.form or "as it was",
                " x ".join(map(str, row.rank)),
                f"{row.error:.4f}" if row.form else "",
                *_ratio(row.macs_before, row.macs_after),
                *_ratio(row.params_before, row.params_after),
            ]
            for row in self.layers
        ]
        whole = _ratio(self.macs_before, self.macs_after)
        rows.append(["model", "", "", "", *whole, *_ratio(self.params_before, self.params_after)])
        header = ["layer", "form", "rank", "error", "MACs", "left", "", "weights", "left", ""]
        return Table(header, rows)

    def __repr__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def _ratio(before, after):
    if before is None:
        return ["?", "?", "?"]
    return [f"{before:,}", f"{after:,}", f"{before / max(after, 1):.2f}x"]
