"""`vector_quantize` and `cluster`: the kernels of a trained model as codes of codebooks."""

import math

import keras

from keras_compress import matching, validation
from keras_compress.convert import check_graph, convert
from keras_compress.layers import CodebookConv2D, CodebookDense
from keras_compress.sharing.codebook import METHODS, centre_count
from keras_compress.sharing.kmeans import INITS

CODEBOOK_LAYERS = {keras.layers.Dense: CodebookDense, keras.layers.Conv2D: CodebookConv2D}


def vector_quantize(
    model,
    method="pq",
    layers=None,
    segment=None,
    k=None,
    bits=None,
    stages=None,
    lookup=False,
    seed=0,
):
    """Returns a copy of a model whose chosen kernels are codes of vectors.

    Needs no data. The centres train further in `fit`, the codes stay.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        method: `"pq"` (product quantisation), `"rq"` (residual quantisation), `"kmeans"` (one book
            of single weights) or `"binary"` (signs times the mean magnitude): see
            `kc.sharing.fit_codebook`.
        layers: The layers to quantise: a key, or a list of keys (layer names, globs, layer classes,
            layers or predicates). `None` for every Dense and Conv2D layer whose input channels
            `segment` divides and that becomes smaller.
        segment: Weights of a segment; by default 4 for `"pq"`, the whole input axis for `"rq"`.
        k: Centres of a book, by default 16.
        bits: `log2` of `k`, in the place of it.
        stages: Stages of `"rq"`, by default 2.
        lookup: Whether layers look up inner products in tables; see `kc.layers.CodebookDense`.
        seed: Seed of k-means.

    Returns:
        A new model with `CodebookDense` and `CodebookConv2D` layers.

    Raises:
        ValueError: if an argument is none of these, `model` has no graph, a key chooses no layer
            with a codebook form, or `segment` does not divide the channels of a layer that is
            chosen by a key.

    Reference:
        Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks Using Vector
        Quantization", 2014.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((64,)),
    ...     keras.layers.Dense(256, activation="relu", name="hidden"),
    ...     keras.layers.Dense(10, name="logits"),
    ... ])
    >>> small = vector_quantize(model, "pq", segment=4, k=16, layers="hidden")
    >>> [type(layer).__name__ for layer in small.layers]
    ['CodebookDense', 'Dense']
    """
    owner = "vector_quantize"
    check_graph(model, owner)
    validation.one_of("method", method, METHODS, owner)
    options = {
        "method": method,
        "segment": segment,
        "k": centre_count(k, bits, owner),
        "stages": stages,
        "lookup": lookup,
        "seed": seed,
    }
    return convert_chosen(model, layers, segment, options, owner)


def cluster(model, bits=None, k=None, init="linear", layers=None, keep_zero=None, seed=0):
    """Returns a copy of a model whose chosen kernels have few values each, found by k-means.

    `fit` then trains the values: the gradient of each is the sum of those of the weights that share
    it. Assignments stay, and so do zeros.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        bits: Bits of a code: `2**bits` values a layer. By default 4.
        k: Number of values, in the place of `bits`.
        init: First values: `"linear"`, evenly over the range of the weights (best for large
            weights, and in the reference), `"density"` or `"kmeans++"`.
        layers: The layers to cluster: a key, or a list of keys (layer names, globs, layer classes,
            layers or predicates). `None` for every Dense and Conv2D layer that becomes smaller.
        keep_zero: Whether weights that are zero stay zero, and one value with them. By default
            where a kernel has zeros.
        seed: Seed of `init="kmeans++"`.

    Returns:
        A new model with `CodebookDense` and `CodebookConv2D` layers.

    Raises:
        ValueError: if an argument is none of these, `model` has no graph, or a key chooses no layer
            with a codebook form.

    Reference:
        Han, Mao, Dally, "Deep Compression", 2016, section 3.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="hidden")])
    >>> small = cluster(model, bits=3)
    >>> len(set(small.layers[0].reconstruct_kernel().ravel().tolist()))
    8
    """
    owner = "cluster"
    check_graph(model, owner)
    options = {
        "k": centre_count(k, bits, owner),
        "init": validation.one_of("init", init, INITS, owner),
        "keep_zero": keep_zero,
        "seed": seed,
    }
    return convert_chosen(model, layers, None, options, owner)


def convert_chosen(model, keys, segment, options, owner):
    """Puts codebook layers in the place of chosen ones.

    Args:
        model: A built model.
        keys: Keys of layers, or `None` for those that it pays for.
        segment: Length that has to divide the channels of layers that no key chose, or `None`.
        options: Options of `from_layer`.
        owner: Name of the function that errors speak for.
    """
    new = {
        id(layer): CODEBOOK_LAYERS[type(layer)].from_layer(layer, **options)
        for layer in codebook_candidates(model, keys, segment, owner)
    }
    if keys is None:
        new = {
            number: layer
            for number, layer in new.items()
            if layer.kernel_bits() < 32 * math.prod(layer.kernel_shape(layer.input_channels))
        }
        if not new:
            raise ValueError(
                f"{owner}: no layer of model '{model.name}' becomes smaller: each kernel takes "
                "less than its codebook. Use fewer centres, or name the `layers`."
            )
    return convert(model, {lambda layer: id(layer) in new: lambda layer: new[id(layer)]})


def codebook_candidates(model, keys, segment, owner):
    """The layers of a model that have a codebook form and are chosen by keys.

    Args:
        model: A built model.
        keys: A key, a list of them, or `None` for all whose channels `segment` divides.
        segment: Length of a segment, or `None`.
        owner: Name of the function that errors speak for.

    Returns:
        List of layers, not empty.
    """
    form = "a codebook form: Dense, Conv2D"
    chosen = matching.with_form(model, keys, _has_codebook_form, form, owner)
    if keys is not None or segment is None:
        return chosen
    fitting = [layer for layer in chosen if layer.kernel.shape[-2] % segment == 0]
    if not fitting:
        raise ValueError(
            f"{owner}: model '{model.name}' has no Dense or Conv2D layer whose input channels "
            f"segment={segment} divides."
        )
    return fitting


def _has_codebook_form(layer):
    # A LoRA or quantized layer computes with more than its kernel.
    extra = getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None)
    return type(layer) in CODEBOOK_LAYERS and not extra
