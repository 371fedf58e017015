"""`apply`: the kernels of a trained model, quantised."""

import keras

from keras_compress import matching
from keras_compress.convert import check_graph, convert
from keras_compress.layers import (
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    QuantSeparableConv2D,
)
from keras_compress.quantizers.registry import get

#: Stock layers that have a Quant form, and that form.
QUANT_LAYERS = {
    keras.layers.Dense: QuantDense,
    keras.layers.Conv2D: QuantConv2D,
    keras.layers.DepthwiseConv2D: QuantDepthwiseConv2D,
    keras.layers.SeparableConv2D: QuantSeparableConv2D,
}


def apply(model, quantizer, layers=None):
    """Returns a copy of a model whose chosen layers have quantised kernels.

    Dense, Conv2D, DepthwiseConv2D and SeparableConv2D layers become Quant layers with the trained
    kernels as latent weights, in which the quantizer finds its scales. The result predicts with the
    quantised kernels at once, can be trained further (the straight-through gradient reaches the
    latent weights), and is stored small by `kc.export.to_tflite`.

    Quantizers without scales (`Sign()`, `Ternary(scale=None)`, `StochasticTernary()`,
    `DoReFaWeight` of more than one bit) change the size of the outputs: use them only where a batch
    normalisation follows, and train.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        quantizer: A `kc.quantizers.Quantizer`, its name or configuration. Each layer gets its own
            copy.
        layers: The layers to quantise: a key, or a list of keys (layer names, globs, layer classes,
            layers or predicates); `None` for every layer that has a Quant form. Keys choose among
            those alone. First and last layers are often worth keeping in float.

    Returns:
        A new model.

    Raises:
        ValueError: if `quantizer` is none, `model` is no model or has no graph, or a key chooses no
            layer that has a Quant form.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((64,)),
    ...     keras.layers.Dense(64, activation="relu", name="hidden"),
    ...     keras.layers.Dense(10, name="logits"),
    ... ])
    >>> small = apply(model, kc.quantizers.Uniform(4), layers="hidden")
    >>> [type(layer).__name__ for layer in small.layers]
    ['QuantDense', 'Dense']
    """
    quantizer = get(quantizer)
    if quantizer is None:
        raise ValueError(
            "apply: `quantizer` must be a quantizer or its name, such as 'uniform'; got None."
        )
    check_graph(model, "apply")
    chosen = {id(layer) for layer in choose_layers(model, layers, "apply")}

    def quantised(layer):
        # Each its own copy: a random quantizer has a state, which belongs to one layer.
        return QUANT_LAYERS[type(layer)].from_layer(layer, kernel_quantizer=quantizer.copy())

    return convert(model, {lambda layer: id(layer) in chosen: quantised})


def choose_layers(model, keys, caller):
    """Layers of a model that have a Quant form and are chosen by `keys`, or all that have one.

    Args:
        model: A built Keras model.
        keys: A key, or a list of keys (see `matching.matches`); `None` for all.
        caller: Name of the function that errors speak for.
    """
    kinds = ", ".join(cls.__name__ for cls in QUANT_LAYERS)
    return matching.with_form(model, keys, _has_quant_form, f"a Quant form: {kinds}", caller)


def _has_quant_form(layer):
    # The kernel of a layer that Keras has quantised is no float kernel.
    return type(layer) in QUANT_LAYERS and getattr(layer, "quantization_mode", None) is None
