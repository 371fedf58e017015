"""`quantize_aware`: a model that trains with the rounding errors of its .tflite."""

import warnings

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.call_graph import CallGraph
from keras_compress.convert import check_graph
from keras_compress.layers.fake_quant import FakeQuant
from keras_compress.layers.fake_quant_kernel import FakeQuantKernel
from keras_compress.quantizers.quantizable import has_kernel, kernel_names
from keras_compress.quantizers.rewriter import Rewriter
from keras_compress.quantizers.rounding_plan import RoundingPlan

SCHEMES = ("int8", "int8_weights", "int4_weights", "16x8")

#: Samples at a time of which the ranges are read.
_OBSERVED_BATCH = 32


def quantize_aware(model, scheme="int8", layers=None, data=None, decay=0.99):
    """Returns a copy of a trained model that trains with the rounding of its .tflite.

    Kernels (Dense, Conv2D, DepthwiseConv2D, SeparableConv2D) and, with `scheme="int8"`, the tensors
    between layers are rounded to their grids in every step, with straight-through gradients.
    `kc.export.to_tflite(model)` then needs no calibration data: every quantised layer is an integer
    kernel, with no way back to float between them, and gives the outputs of the Keras model up to
    steps of the grid in which LiteRT rounds otherwise.

    What is done, as the converter will do it:

    - A batch normalisation behind a kernel is folded into it (see
      `kc.layers.fake_quant_kernel.FakeQuantKernel` for what that means in training); any other
      becomes a depthwise 1x1 convolution at export. `freeze_statistics` stops the statistics.
    - ReLU and ReLU6 are fused: ranges are taken behind them. Sigmoid, softmax and tanh have the
      grids that LiteRT fixes. leaky ReLU, GELU, SiLU and hard SiLU have grids of their own.
    - Sums, differences, products (also `x + y`, ...) and global averages have grids of their own;
      inputs and output of a concatenation, a maximum or a minimum share one. Pooling, padding,
      reshaping and dropout stay on the grid of their input.
    - Everything else stays in float, and a warning names it.

    The copy is one functional model: nested models are dissolved (a subclass of `Model` with a
    training step of its own becomes a plain one). Layers keep their names where these are unique.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        scheme: `"int8"`: weights and activations, integer kernels throughout. `"int8_weights"` and
            `"int4_weights"`: kernels only, on grids of 8 and 4 bits with a step for each output
            channel; a .tflite stores them as native integers, for float activations (int4 where
            LiteRT has a kernel: dense layers and 1x1 convolutions; others hold the values of 4
            bits in int8; depthwise kernels are float).
        layers: The layers to quantise: a key, or a list of keys (layer names, globs, layer classes,
            layers or predicates); `None` for all. Layers without a kernel follow: they are
            quantised where all of their inputs are.
        data: Samples of the input (an array, or a list or dict of arrays as the model takes them)
            to read the ranges of activations from, or `None`: training reads them.
        decay: Weight of the past in the moving average of ranges.

    Returns:
        A new functional model, compiled like `model` if that is compiled.

    Raises:
        ValueError: if `scheme` is unknown or "16x8", the model has no graph, is not built or is
            quantised already, a key chooses no layer, a layer chosen by name has no quantised form,
            or `data` are empty.

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018.
        Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
        whitepaper", 2018.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
    ...     keras.layers.BatchNormalization(),
    ...     keras.layers.ReLU(),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(2, name="logits"),
    ... ])
    >>> aware = kc.quantizers.quantize_aware(model)
    >>> [type(layer).__name__ for layer in aware.layers[1:4]]
    ['FakeQuant', 'FakeQuantConv2D', 'ReLU']
    """
    validation.one_of("scheme", scheme, SCHEMES, "quantize_aware")
    if scheme == "16x8":
        raise ValueError(
            "quantize_aware: scheme='16x8' cannot be exported: TensorFlow's converter writes "
            "activations of 16 bits from calibration only, and makes wrong int8 tensors of 16-bit "
            "fake quantisation (measured with TensorFlow 2.21). Use scheme='int8', or "
            "'int8_weights' where activations need more than 8 bits."
        )
    check_graph(model, "quantize_aware")
    for layer in matching.leaf_layers(model):
        if isinstance(layer, (FakeQuant, FakeQuantKernel)):
            raise ValueError(
                f"quantize_aware: model '{model.name}' is quantised already: layer '{layer.name}' "
                f"is a {type(layer).__name__}. Give the model from before."
            )
    graph = CallGraph(model)
    plan = RoundingPlan(graph, scheme, _chosen(model, layers))
    new = Rewriter(graph, plan, scheme, decay).model(model)
    if plan.floats:
        warnings.warn(
            f"quantize_aware: {', '.join(plan.floats)} stay in float, having no quantised form: "
            "unless the converter finds an integer one, the .tflite goes to float and back there.",
            stacklevel=2,
        )
    if data is not None:
        _observe(new, model, data)
    return new


def freeze_statistics(model, frozen=True):
    """Stops, or starts again, the moving statistics of a quantize-aware model.

    Ranges of activations and statistics of batch normalisations stay as they are, and training
    normalises with the latter, as inference does. The last epochs are best trained so. It acts
    inside of the compiled step: no `compile` is needed.

    Args:
        model: A model made by `quantize_aware`.
        frozen: Whether they stop.

    Raises:
        ValueError: if the model has no such statistics.
    """
    flags = [layer.frozen for layer in matching.leaf_layers(model) if hasattr(layer, "frozen")]
    if not flags:
        raise ValueError(
            f"freeze_statistics: model '{model.name}' has no moving statistics of quantize-aware "
            "training. Give what quantize_aware() returned."
        )
    for flag in flags:
        flag.assign(float(frozen))


def _chosen(model, keys):
    """Ids of the layers that `layers=` chooses, or `None` for all."""
    leaves = matching.leaf_layers(model)
    if keys is None:
        if not any(has_kernel(layer) for layer in leaves):
            raise ValueError(
                f"quantize_aware: model '{model.name}' has no layer with a quantised form: "
                f"{kernel_names()}."
            )
        return None
    keys = list(keys) if isinstance(keys, (list, tuple)) else [keys]
    chosen = matching.resolve(keys, leaves)
    for layer, key in chosen:
        named = key == layer.name or key is layer or key is type(layer)
        if named and not has_kernel(layer):
            raise ValueError(
                f"quantize_aware: layer '{layer.name}' ({type(layer).__name__}), chosen by "
                f"{matching.describe(key)}, has no quantised form of its own: `layers` takes those "
                f"with a kernel, {kernel_names()}. Layers without follow their inputs."
            )
    with_kernel = {id(layer) for layer, _ in chosen if has_kernel(layer)}
    if not with_kernel:
        raise ValueError(
            f"quantize_aware: {', '.join(matching.describe(key) for key in keys)} chooses no layer "
            f"with a kernel ({kernel_names()}); chosen were "
            f"{', '.join(repr(layer.name) for layer, _ in chosen)}."
        )
    return with_kernel


def _observe(model, source, data):
    """Reads the ranges of activations from data, with nothing trained."""
    structure = source.inputs[0] if isinstance(source, keras.Sequential) else source.input
    arrays = [np.asarray(array) for array in keras.tree.flatten(data)]
    if len(arrays) != len(source.inputs) or min(map(len, arrays)) == 0:
        raise ValueError(
            f"quantize_aware: `data` must be samples of the {len(source.inputs)} inputs of the "
            f"model; got shapes {[array.shape for array in arrays]}."
        )
    grids = [layer for layer in model.layers if isinstance(layer, FakeQuant)]
    try:
        for grid in grids:
            grid.observing = True
        for start in range(0, len(arrays[0]), _OBSERVED_BATCH):
            batch = [array[start : start + _OBSERVED_BATCH] for array in arrays]
            model(keras.tree.pack_sequence_as(structure, batch), training=False)
    finally:
        for grid in grids:
            grid.observing = False
