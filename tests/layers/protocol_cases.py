"""The layers that the protocol tests run over: a new layer gets them all by being listed here."""

import dataclasses

from keras_compress import layers


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


CASES = [
    Case(
        "TTDense",
        layers.TTDense,
        {"units": 12, "input_modes": (2, 3, 4), "output_modes": (3, 2, 2), "rank": 3},
        (24,),
        fit={"input_modes": (2, 3, 4), "output_modes": (3, 2, 2), "rank": 4},
        exact={"input_modes": (2, 3, 4), "output_modes": (3, 2, 2), "rank": (6, 8)},
    ),
    Case(
        "TTDense-sequence-relu",
        layers.TTDense,
        {"units": 16, "rank": (3,), "activation": "relu", "use_bias": False},
        (5, 16),
        fit={"rank": 0.5},
        exact={"rank": 16},
    ),
]
