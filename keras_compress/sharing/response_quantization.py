"""`quantize_responses`: product quantisation of a model that corrects its own errors (Q-CNN)."""

import keras
import numpy as np
from keras import ops

from keras_compress import matching, validation
from keras_compress.convert import check_graph, convert, rebuild
from keras_compress.layers.codebook_conv2d import border
from keras_compress.layers.compressed_convolution import conv_output_length
from keras_compress.samples import Samples
from keras_compress.sharing.codebook import fit_codebook
from keras_compress.sharing.response_fit import ResponseFit
from keras_compress.sharing.vector_quantization import CODEBOOK_LAYERS, codebook_candidates


def quantize_responses(
    model,
    subspace=8,
    k=128,
    data=None,
    layers=None,
    sweeps=10,
    patches=16,
    batch_size=64,
    lookup=False,
    seed=0,
):
    """Returns a copy of a model with product-quantised kernels, fitted to the layers' outputs.

    Layer after layer, as data run through them, the codebooks minimise the difference between what
    the layer gave in the original model and what it gives on the outputs of the layers that are
    quantised already, so that errors do not add up. Needs no targets. The centres train further in
    `fit`.

    The time for the data is that of two passes through the model for each layer; memory is that of
    the square of a layer's inputs (of a convolution, kernel positions times channels).

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        subspace: Input channels of a segment (C' in the reference, where it is 2 to 8).
        k: Centres of a segment's book, in the reference 32 to 128; fewer where there are fewer
            vectors.
        data: Samples of the input, some hundreds: an array, a list or dict of arrays as the model
            takes them, or an iterable of batches `x` or `(x, y)`.
        layers: The layers to quantise: a key, or a list of keys (layer names, globs, layer classes,
            layers or predicates). `None` for every Dense and Conv2D layer of one group whose input
            channels `subspace` divides and that becomes smaller.
        sweeps: Most rounds of block coordinate descent over the segments of a layer.
        patches: Patches of each sample that a convolution is fitted to, drawn at random.
        batch_size: Rows that go through the model at once, where `data` is arrays.
        lookup: Whether the layers of the result compute by tables, as in the reference; see
            `kc.layers.CodebookDense`.
        seed: Seed of k-means and of the patches.

    Returns:
        A new model with `CodebookDense` and `CodebookConv2D` layers.

    Raises:
        ValueError: if `model` has no graph, there are no data, a key chooses no layer with a
            codebook form or a grouped convolution, or `subspace` does not divide the channels of a
            layer that is chosen by a key.

    Reference:
        Wu, Leng, Wang, Hu, Cheng, "Quantized Convolutional Neural Networks for Mobile Devices",
        2016.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(200, name="hidden")])
    >>> x = np.random.default_rng(0).normal(size=(100, 32))
    >>> small = quantize_responses(model, subspace=4, k=16, data=x)
    >>> type(small.layers[0]).__name__
    'CodebookDense'
    """
    owner = "quantize_responses"
    check_graph(model, owner)
    subspace = validation.positive_int("subspace", subspace, owner)
    k = validation.positive_int("k", k, owner)
    sweeps = validation.positive_int("sweeps", sweeps, owner)
    patches = validation.positive_int("patches", patches, owner)
    samples = Samples(model, data, batch_size, owner=owner)
    chosen = _ungrouped(codebook_candidates(model, layers, subspace, owner), layers, owner)
    original, quantised = rebuild(model, {}), rebuild(model, {})
    places = {id(layer): number for number, layer in enumerate(matching.leaf_layers(model))}
    before, after = matching.leaf_layers(original), matching.leaf_layers(quantised)
    numbers = [places[id(layer)] for layer in chosen]
    new = {}
    for number in _running_order(original, before, numbers, samples):
        kernel = ops.convert_to_numpy(before[number].kernel).astype("float32")
        book = fit_codebook(kernel, "pq", k=k, segment=subspace, seed=seed)
        if layers is None and book.storage_bits() >= 32 * kernel.size:
            continue
        pair = (original, before[number]), (quantised, after[number])
        statistics = _statistics(*pair, samples, patches, np.random.default_rng(seed))
        book = ResponseFit(book, *statistics).run(sweeps).codebook()
        after[number].kernel.assign(book.decode())
        new[number] = book
    if not new:
        raise ValueError(
            f"{owner}: no layer of model '{model.name}' becomes smaller: each kernel takes less "
            "than its codebook. Use a smaller `k`, or name the `layers`."
        )

    def coded(layer):
        book = new[places[id(layer)]]
        return CODEBOOK_LAYERS[type(layer)].from_layer(layer, codebook=book, lookup=lookup)

    return convert(model, {lambda layer: places[id(layer)] in new: coded})


def _ungrouped(candidates, keys, owner):
    grouped = [layer for layer in candidates if getattr(layer, "groups", 1) > 1]
    if grouped and keys is not None:
        raise ValueError(
            f"{owner}: convolutions of several groups are not fitted to responses; "
            f"'{grouped[0].name}' has {grouped[0].groups}. Leave it out of `layers`, or use "
            "vector_quantize."
        )
    return [layer for layer in candidates if layer not in grouped]


def _running_order(model, layers, numbers, samples):
    """Numbers of layers in the order in which a model first calls them."""
    order = []
    taps = [
        _Tap(layers[number], lambda _, number=number: order.append(number)) for number in numbers
    ]
    inputs, _ = next(iter(samples))
    _run(model, [array[:1] for array in inputs])
    for tap in taps:
        tap.remove()
    return list(dict.fromkeys(order))


def _statistics(original, quantised, samples, patches, rng):
    """`(S'S, S'T, ||T||^2)` of a layer; arguments are pairs of a model and its layer."""
    kernel = ops.convert_to_numpy(original[1].kernel).astype("float64")
    kernel = kernel.reshape(-1, kernel.shape[-1])
    gram = np.zeros((len(kernel), len(kernel)))
    cross, energy = np.zeros(kernel.shape), 0.0
    for inputs, _ in samples:
        calls = [_inputs_of(model, layer, inputs) for model, layer in (original, quantised)]
        for wanted, given in zip(*calls, strict=True):
            choice = _choice(original[1], wanted.shape, patches, rng)
            rows = _rows(original[1], given, choice)
            targets = _rows(original[1], wanted, choice) @ kernel
            gram += rows.T @ rows
            cross += rows.T @ targets
            energy += float(np.sum(np.square(targets)))
    return gram, cross, energy


def _inputs_of(model, layer, inputs):
    """What a layer gets at each of its calls."""
    found = []
    tap = _Tap(layer, found.append)
    _run(model, inputs)
    tap.remove()
    return [ops.convert_to_numpy(ops.cast(tensor, "float32")) for tensor in found]


class _Tap:
    """Shows a function what a layer of a copied model is called on."""

    def __init__(self, layer, show):
        self._layer, call = layer, layer.call

        def tapped(inputs, *args, **kwargs):
            show(inputs)
            return call(inputs, *args, **kwargs)

        layer.call = tapped

    def remove(self):
        del self._layer.call


def _run(model, inputs):
    tensors = [ops.convert_to_tensor(array) for array in inputs]
    # A Sequential model has no `input` of its own before it is called.
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    model(keras.tree.pack_sequence_as(structure, tensors), training=False)


def _choice(layer, shape, patches, rng):
    """Output positions of each sample of a convolution, `(2, samples, patches)`."""
    if not isinstance(layer, keras.layers.Conv2D):
        return None
    size = shape[1:3] if layer.data_format == "channels_last" else shape[2:4]
    geometry = (size, layer.kernel_size, layer.strides, layer.dilation_rate)
    return np.stack(
        [
            rng.integers(
                conv_output_length(*axis[:3], layer.padding, axis[3]), size=(shape[0], patches)
            )
            for axis in zip(*geometry, strict=True)
        ]
    )


def _rows(layer, inputs, choice):
    """Inputs of a layer as float64 rows: of a convolution, the patches of chosen positions."""
    if choice is None:
        return inputs.reshape(-1, inputs.shape[-1]).astype("float64")
    if layer.data_format == "channels_first":
        inputs = np.moveaxis(inputs, 1, -1)
    padded = np.pad(inputs, ((0, 0), *border(layer, inputs.shape[1:3]), (0, 0)))
    sample = np.arange(len(inputs))[:, None]
    tops, lefts = (place * stride for place, stride in zip(choice, layer.strides, strict=True))
    parts = [
        padded[sample, tops + i * layer.dilation_rate[0], lefts + j * layer.dilation_rate[1]]
        for i in range(layer.kernel_size[0])
        for j in range(layer.kernel_size[1])
    ]
    return np.concatenate(parts, axis=-1).reshape(choice[0].size, -1).astype("float64")
