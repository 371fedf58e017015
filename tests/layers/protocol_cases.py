"""The layers that the protocol tests run over: a new layer gets them all by being listed here."""

import dataclasses

from keras_compress import layers, quantizers


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
        initializer: Name of the kernel initializer's argument.
    """

    name: str
    cls: type
    arguments: dict
    input_shape: tuple
    fit: dict = dataclasses.field(default_factory=dict)
    exact: dict | None = None
    signs: bool = False
    tolerance: float = 1e-5
    initializer: str = "kernel_initializer"


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
    Case(
        "FactorizedDense",
        layers.FactorizedDense,
        {"units": 12, "rank": 4, "activation": "tanh"},
        (16,),
        fit={"rank": 0.7},
        exact={"rank": 12},
    ),
    Case(
        "FactorizedDense-sequence",
        layers.FactorizedDense,
        {"units": 8, "rank": 3, "use_bias": False},
        (5, 10),
        fit={"rank": 3},
        exact={"rank": 1.0},
    ),
    Case(
        "FactorizedConv2D-svd-dilated",
        layers.FactorizedConv2D,
        {"filters": 12, "kernel_size": 3, "dilation_rate": (1, 2), "form": "svd", "rank": 4},
        (8, 9, 6),
        fit={"form": "svd", "rank": "evbmf"},
        exact={"form": "svd", "rank": 12},
    ),
    Case(
        "FactorizedConv2D-spatial-strided",
        layers.FactorizedConv2D,
        {
            "filters": 10,
            "kernel_size": (3, 5),
            "strides": 2,
            "padding": "same",
            "form": "spatial",
            "rank": 6,
            "activation": "relu",
        },
        (9, 8, 6),
        fit={"form": "spatial", "rank": 0.8},
        exact={"form": "spatial", "rank": 18},
    ),
    Case(
        "FactorizedConv2D-tucker",
        layers.FactorizedConv2D,
        {"filters": 12, "kernel_size": 3, "padding": "same", "form": "tucker", "rank": (4, 6)},
        (7, 6, 8),
        fit={"rank": (5, 7)},
        exact={"rank": (8, 12)},
    ),
    Case(
        "FactorizedConv2D-tucker-channels-first",
        layers.FactorizedConv2D,
        {
            "filters": 8,
            "kernel_size": 3,
            "strides": 2,
            "data_format": "channels_first",
            "rank": 4,
            "use_bias": False,
        },
        (6, 9, 8),
        fit={"rank": 4},
        exact={"rank": 1.0},
    ),
    Case(
        "FactorizedConv2D-cp",
        layers.FactorizedConv2D,
        {
            "filters": 12,
            "kernel_size": 3,
            "strides": (2, 1),
            "padding": "same",
            "form": "cp",
            "rank": 8,
        },
        (8, 7, 10),
        fit={"form": "cp", "rank": 6},
    ),
    Case(
        "BinaryDense-BNN",
        layers.BinaryDense,
        {"units": 12, "activation": "relu"},
        (24,),
        signs=True,
        fit={"input_quantizer": "sign"},
    ),
    Case(
        "BinaryDense-BWN-sequence",
        layers.BinaryDense,
        {"units": 8, "input_quantizer": None, "scale": "mean_abs", "use_bias": False},
        (5, 16),
    ),
    Case(
        "BinaryDense-XNOR",
        layers.BinaryDense,
        {"units": 8, "scale": "mean_abs", "input_scale": "xnor", "ste": "scaled"},
        (5, 16),
        signs=True,
        fit={"input_quantizer": "sign", "input_scale": "xnor", "ste": "scaled"},
    ),
    Case(
        "BinaryConv2D-BNN-strided",
        layers.BinaryConv2D,
        {"filters": 6, "kernel_size": (3, 2), "strides": 2, "padding": "same"},
        (8, 9, 4),
        signs=True,
        fit={"input_quantizer": "sign"},
    ),
    Case(
        "BinaryConv2D-BinaryConnect-stochastic-dilated",
        layers.BinaryConv2D,
        {
            "filters": 6,
            "kernel_size": 3,
            "dilation_rate": 2,
            "input_quantizer": None,
            "scale": None,
            "stochastic": True,
            "seed": 3,
        },
        (8, 9, 4),
    ),
    Case(
        "BinaryConv2D-XNOR-groups",
        layers.BinaryConv2D,
        {
            "filters": 6,
            "kernel_size": 3,
            "padding": "same",
            "groups": 2,
            "scale": "mean_abs",
            "input_scale": "xnor",
            "activation": "relu",
        },
        (8, 7, 4),
        signs=True,
        fit={"input_quantizer": "sign", "input_scale": "xnor"},
    ),
    Case(
        "BinaryConv2D-BWN-channels-first",
        layers.BinaryConv2D,
        {
            "filters": 6,
            "kernel_size": 3,
            "data_format": "channels_first",
            "input_quantizer": None,
            "scale": "mean_abs",
        },
        (4, 8, 7),
    ),
    Case(
        "HashedDense",
        layers.HashedDense,
        {"units": 24, "compression": 1 / 8, "activation": "tanh"},
        (32,),
        fit={"compression": 1 / 4, "seed": 3},
    ),
    Case(
        "HashedDense-sequence",
        layers.HashedDense,
        {"units": 16, "compression": 0.3, "seed": 5, "use_bias": False},
        (5, 20),
        fit={"compression": 1.0},
    ),
    Case(
        "CirculantDense-blocks-padded",
        layers.CirculantDense,
        {"units": 60, "block_size": 16, "seed": 1, "activation": "relu"},
        (90,),
        fit={"block_size": 4, "seed": 2},
    ),
    Case(
        "CirculantDense-sequence-two-stages",
        layers.CirculantDense,
        {"units": 130, "block_size": 80, "random_signs": False, "use_bias": False},
        (5, 160),
        fit={"block_size": 36, "random_signs": False},
    ),
    Case(
        "CirculantDense-full-fft",
        layers.CirculantDense,
        {"units": 90, "seed": 1},
        (200,),
        fit={},
    ),
    Case(
        "CirculantDense-kernel-smaller-than-spectra",
        layers.CirculantDense,
        {"units": 12, "block_size": 6, "seed": 1},
        (18,),
        fit={"block_size": 2},
    ),
    Case(
        "QuantDense-TWN",
        layers.QuantDense,
        {"units": 12, "kernel_quantizer": "ternary", "activation": "relu"},
        (24,),
        fit={"kernel_quantizer": "ternary"},
        exact={"kernel_quantizer": None},
    ),
    Case(
        "QuantDense-4-bits-fixed-point-inputs-sequence",
        layers.QuantDense,
        {
            "units": 8,
            "kernel_quantizer": quantizers.Uniform(4),
            "input_quantizer": quantizers.FixedPoint(8, 5, "stochastic", seed=1),
            "use_bias": False,
        },
        (5, 16),
        signs=True,
        fit={"kernel_quantizer": quantizers.Uniform(4), "input_quantizer": "fixed_point"},
    ),
    Case(
        "QuantDense-sketch-HORQ",
        layers.QuantDense,
        {
            "units": 8,
            "kernel_quantizer": quantizers.ResidualSign(3, refine=True),
            "input_quantizer": quantizers.ResidualSign(2, axis=0, ste="clip"),
        },
        (24,),
        signs=True,
        fit={"kernel_quantizer": quantizers.ResidualSign(2)},
    ),
    Case(
        "QuantDense-8-bit-tree",
        layers.QuantDense,
        {"units": 40, "kernel_quantizer": "dynamic_tree8"},
        (32,),
        fit={"kernel_quantizer": "dynamic_tree8"},
    ),
    Case(
        "QuantConv2D-L2-strided",
        layers.QuantConv2D,
        {
            "filters": 6,
            "kernel_size": (3, 2),
            "strides": 2,
            "padding": "same",
            "kernel_quantizer": quantizers.UniformL2(7),
            "activation": "tanh",
        },
        (8, 9, 4),
        fit={"kernel_quantizer": quantizers.UniformL2(15, axis=-1)},
        exact={},
    ),
    Case(
        "QuantConv2D-INQ-groups-dilated",
        layers.QuantConv2D,
        {
            "filters": 6,
            "kernel_size": 3,
            "groups": 2,
            "dilation_rate": (1, 2),
            "kernel_quantizer": "power_of_two",
        },
        (8, 9, 4),
        fit={"kernel_quantizer": quantizers.PowerOfTwo(4, terms=2)},
    ),
    Case(
        "QuantConv2D-pointwise-DoReFa",
        layers.QuantConv2D,
        {
            "filters": 6,
            "kernel_size": 1,
            "kernel_quantizer": quantizers.DoReFaWeight(1),
            "input_quantizer": "sign",
        },
        (7, 6, 16),
        signs=True,
        fit={"kernel_quantizer": quantizers.DoReFaWeight(1), "input_quantizer": "sign"},
    ),
    Case(
        "QuantConv2D-16-bits-channels-first",
        layers.QuantConv2D,
        {
            "filters": 6,
            "kernel_size": 3,
            "data_format": "channels_first",
            "kernel_quantizer": quantizers.FixedPoint(16, 12, "stochastic", seed=2),
            "use_bias": False,
        },
        (4, 8, 7),
        fit={"kernel_quantizer": quantizers.FixedPoint(16, 12)},
    ),
    Case(
        "QuantDepthwiseConv2D-4-bits-strided",
        layers.QuantDepthwiseConv2D,
        {
            "kernel_size": 3,
            "strides": 2,
            "padding": "same",
            "depth_multiplier": 2,
            "kernel_quantizer": quantizers.Uniform(4),
            "activation": "relu",
        },
        (8, 9, 6),
        fit={"kernel_quantizer": quantizers.Uniform(4)},
        exact={},
        initializer="depthwise_initializer",
    ),
    Case(
        "QuantDepthwiseConv2D-ternary-fixed-point-inputs",
        layers.QuantDepthwiseConv2D,
        {
            "kernel_size": (2, 3),
            "kernel_quantizer": quantizers.Ternary(axis=-1),
            "input_quantizer": quantizers.FixedPoint(8, 6),
            "use_bias": False,
        },
        (8, 9, 6),
        signs=True,
        fit={"kernel_quantizer": quantizers.Ternary(axis=-1)},
        initializer="depthwise_initializer",
    ),
    Case(
        "FakeQuantDense-4-bits-weights-only",
        layers.FakeQuantDense,
        {"units": 12, "weight_bits": 4, "granularity": "channel", "weights_only": True},
        (16,),
        fit={"weight_bits": 4, "granularity": "channel"},
    ),
    Case(
        "FakeQuantConv2D-batch-norm-strided",
        layers.FakeQuantConv2D,
        {
            "filters": 6,
            "kernel_size": 3,
            "strides": 2,
            "padding": "same",
            "activation": "relu",
            "use_bias": False,
            "batch_norm": {"momentum": 0.9},
        },
        (8, 9, 4),
    ),
    Case(
        "FakeQuantConv2D-channels-first",
        layers.FakeQuantConv2D,
        {
            "filters": 6,
            "kernel_size": (3, 2),
            "data_format": "channels_first",
            "use_bias": False,
            "batch_norm": {"scale": False},
        },
        (4, 8, 7),
    ),
    Case(
        "FakeQuantDepthwiseConv2D",
        layers.FakeQuantDepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2, "batch_norm": {}, "use_bias": False},
        (8, 9, 6),
        initializer="depthwise_initializer",
    ),
]
