"""`compress_on_the_fly`: binary hidden layers and a product-quantised output layer."""

import math

import keras

from keras_compress import matching, validation
from keras_compress.convert import check_graph, convert
from keras_compress.layers import CodebookDense, QuantDense
from keras_compress.pruning.prunable import output_layers
from keras_compress.quantizers.residual_sign import ResidualSign

_OWNER = "compress_on_the_fly"


def compress_on_the_fly(model, hidden=None, output=None, segment=None, k=16, seed=0):
    """Returns a copy of a model whose dense layers are signs, and the last one codes of vectors.

    The second half of Soulie's method. The first is training with
    `kernel_regularizer=kc.regularizers.BinaryAttraction(...)` on the hidden dense layers and
    `kc.callbacks.PenaltyRamp`, so that their weights are close to two values already. Here these
    become `sign(w) c` with `c = mean|w|` of the layer, one bit a weight, and the kernel of the
    output layer is product-quantised. Layers of other kinds stay as they are. Needs no data.

    What it buys: a .tflite with native int2 (or int4) weights in the hidden layers, and codes with
    centres in the output layer, or int8 where these would not be smaller.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        hidden: Keys (layer name, glob, class or predicate) of the Dense layers to make binary; by
            default all but the output layers.
        output: Keys of the Dense layers to product-quantise; by default those that give the
            model's outputs.
        segment: Weights of a segment of the product quantisation; see `kc.layers.CodebookDense`.
        k: Centres of each of its books: fewer than the units of the layer.
        seed: Seed of k-means.

    Returns:
        A new model with `QuantDense` and `CodebookDense` layers.

    Raises:
        ValueError: if `model` has no graph, there is no layer to make binary or to quantise, a key
            chooses no Dense layer, both keys choose one layer, or the codebook takes as much as the
            kernel of the output layer.

    Reference:
        Soulie, Gripon, Robert, "Compression of Deep Neural Networks on the Fly", 2016.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((64,)),
    ...     keras.layers.Dense(256, activation="relu", name="hidden"),
    ...     keras.layers.Dense(100, name="logits"),
    ... ])
    >>> small = compress_on_the_fly(model)
    >>> [type(layer).__name__ for layer in small.layers]
    ['QuantDense', 'CodebookDense']
    >>> round(kc.profile.storage_bits(model) / kc.profile.storage_bits(small), 1)
    7.3
    """
    check_graph(model, _OWNER)
    validation.positive_int("k", k, _OWNER)
    dense = [layer for layer in matching.leaf_layers(model) if type(layer) is keras.layers.Dense]
    last = [id(layer) for layer in output_layers(model)]
    outputs = _chosen("output", output, dense, [layer for layer in dense if id(layer) in last])
    taken = [id(layer) for layer in outputs]
    rest = [layer for layer in dense if id(layer) not in [*taken, *last]]
    binary = _chosen("hidden", hidden, dense, rest)
    for layer in binary:
        if id(layer) in taken:
            raise ValueError(
                f"{_OWNER}: layer '{layer.name}' is chosen as hidden layer and as output layer; "
                f"got hidden={hidden!r}, output={output!r}. Name each layer once."
            )
    new = {}
    for layer in binary:
        # One scale for the layer: two values, where `Sign("mean_abs")` has two for each unit.
        signs = ResidualSign(order=1, axis=None)
        new[id(layer)] = QuantDense.from_layer(layer, kernel_quantizer=signs)
    for layer in outputs:
        coded = CodebookDense.from_layer(layer, method="pq", segment=segment, k=k, seed=seed)
        if coded.kernel_bits() >= 32 * math.prod(layer.kernel.shape):
            raise ValueError(
                f"{_OWNER}: codes and centres of layer '{layer.name}' take as much as its "
                f"{layer.units} units do in float; got k={k}. Use fewer centres than units."
            )
        new[id(layer)] = coded
    return convert(model, {lambda layer: id(layer) in new: lambda layer: new[id(layer)]})


def _chosen(name, keys, dense, default):
    """The Dense layers that keys choose, or the default; not empty."""
    if keys is None:
        if not default:
            raise ValueError(
                f"{_OWNER}: the model has no dense {name} layer; name Dense layers by `{name}`."
            )
        return default
    keys = list(keys) if isinstance(keys, (list, tuple)) else [keys]
    return [layer for layer, _ in matching.resolve(keys, dense)]
