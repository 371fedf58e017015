"""`Budget`: how much of its cost a compressed model may keep."""

import dataclasses

from keras_compress import validation


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a model may still cost, as a share of what it costs now. Give exactly one.

    Args:
        macs: Share of the multiply-accumulates, in (0, 1].
        params: Share of the number of weights.
        bytes: Share of the bytes of the weights (float32).
        energy: Share of the energy of `kc.profile.energy`.
        latency: Share of the latency on LiteRT of the model's Dense layers and convolutions, added
            up from a table of each measured alone. What the others take (additions, pooling) is
            not in it.
        latency_table: With `latency`: a `kc.profile.LatencyTable` of the model, made before (or on
            another machine); by default one is measured here.

    Example:

    >>> import keras_compress as kc
    >>> kc.pruning.Budget(macs=0.5)
    Budget(macs=0.5)
    """

    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    energy: float | None = None
    latency: float | None = None
    latency_table: object = None

    def __post_init__(self):
        given = self._given()
        if len(given) != 1:
            raise ValueError(
                "Budget: give exactly one of macs=, params=, bytes=, energy=, latency=; got "
                f"{', '.join(f'{k}={v!r}' for k, v in given.items()) or 'none'}."
            )
        validation.number(self.what, self.share, 0, 1, low_open=True, owner="Budget")
        if self.latency_table is not None and self.latency is None:
            raise ValueError(f"Budget: `latency_table` goes with latency=, not with {self.what}=.")

    def _given(self):
        names = ("macs", "params", "bytes", "energy", "latency")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def what(self):
        """Name of the quantity."""
        return next(iter(self._given()))

    @property
    def share(self):
        """Its allowed share."""
        return self._given()[self.what]

    def __repr__(self):
        return f"Budget({self.what}={self.share!r})"
