"""The layers that the protocol tests run over: a new layer gets them all by being listed here."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer in one configuration.

    Attributes:
        name: Id of the test.
        cls: The layer class.
        arguments: Constructor arguments.
        input_shape: Shape of one sample, without the batch axis.
        fit: Options of `from_layer`.
        exact: Options of `from_layer` that reproduce any kernel, or `None` if no option does.
        signs: Whether inputs are drawn from {-1, 1} (layers whose input quantizer leaves those
            alone equal their `expand()` only there).
        tolerance: Largest absolute difference between the layer and its `expand()`.
    """

    name: str
    cls: type
    arguments: dict
    input_shape: tuple
    fit: dict = dataclasses.field(default_factory=dict)
    exact: dict | None = None
    signs: bool = False
    tolerance: float = 1e-5


CASES = []
