"""`deep_compress`: prune and retrain, share values, fine-tune them, ready for the archive."""

import numbers

import keras

from keras_compress import matching, validation
from keras_compress.callbacks import MagnitudePruning
from keras_compress.convert import check_graph, convert, rebuild
from keras_compress.pruning import PolynomialDecay, prune_weights, strip
from keras_compress.sharing.deep_compressed import DeepCompression
from keras_compress.sharing.vector_quantization import CODEBOOK_LAYERS, codebook_candidates

#: Of the steps of pruning, the share after which the last weight is gone, and how often some go.
_RAMP, _ROUNDS = 0.5, 50


def deep_compress(
    model,
    sparsity=0.9,
    conv_bits=8,
    dense_bits=5,
    data=None,
    *,
    epochs=10,
    share_epochs=5,
    layers=None,
    batch_size=32,
    validation_data=None,
    callbacks=None,
    verbose=1,
):
    """Deep Compression: prunes weights and retrains, shares values, and fine-tunes these.

    1. The smallest weights go during `epochs` of training, gradually in the first half
       (`kc.callbacks.MagnitudePruning`).
    2. k-means gives the weights that are left of each kernel `2**bits` values, zero one of them,
       begun evenly over their range (`kc.layers.CodebookDense`, `CodebookConv2D`).
    3. The values train for `share_epochs`: the gradient of each is the sum of those of its weights.

    Codes and positions are Huffman-coded when the result is saved: `.save("model.kcz")`.

    What it buys: the bytes of a file that is sent or stored, 30 to 50 times. In a .tflite the codes
    and values stay (`kc.export.to_tflite`), without Huffman's part.

    Args:
        model: A built Sequential or functional model, nested ones included; compiled, if it is to
            train: both trainings use its loss and a fresh copy of its optimizer each. It is not
            changed.
        sparsity: Share of the weights to prune, in [0, 1): of each kernel, or a dict from keys
            (layer names, globs, layer classes or predicates) to shares; the first key that fits a
            layer counts, one that none fits is not pruned.
        conv_bits: Bits of the codes of convolutions.
        dense_bits: Bits of the codes of dense layers.
        data: What `fit` takes: `(x, y)`, `(x, y, sample_weight)` or a dataset of batches. Needed
            unless both numbers of epochs are 0.
        epochs: Epochs of pruning and retraining; 0 prunes at once.
        share_epochs: Epochs of training the shared values.
        layers: The layers to compress: a key, or a list of keys. `None` for every trainable Dense
            and Conv2D layer.
        batch_size: Rows of arrays at a time.
        validation_data: As in `fit`.
        callbacks: Keras callbacks of both trainings.
        verbose: As in `fit`.

    Returns:
        A `DeepCompression`: `.model`, `.table()`, `.save(path)`, `.history`.

    Raises:
        ValueError: if an argument is none of these, the model has no graph, a key chooses no layer
            that can be compressed, or there is to be training without data or a compiled model.

    Reference:
        Han, Mao, Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
        Quantization and Huffman Coding", 2016.

    Example:

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> model = keras.Sequential([
    ...     keras.Input((64,)),
    ...     keras.layers.Dense(100, activation="relu", name="hidden"),
    ...     keras.layers.Dense(10, name="logits"),
    ... ])
    >>> model.compile("adam", "mse")
    >>> rng = np.random.default_rng(0)
    >>> data = rng.normal(size=(64, 64)), rng.normal(size=(64, 10))
    >>> result = deep_compress(
    ...     model, sparsity=0.9, data=data, epochs=2, share_epochs=1, verbose=0
    ... )
    >>> [layer.kept for layer in result.layers]
    [0.1, 0.1]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     archive = result.save(pathlib.Path(folder, "model.kcz"))
    """
    owner = "deep_compress"
    check_graph(model, owner)
    bits = {
        keras.layers.Conv2D: validation.integer("conv_bits", conv_bits, 1, 12, owner),
        keras.layers.Dense: validation.integer("dense_bits", dense_bits, 1, 12, owner),
    }
    epochs = validation.integer("epochs", epochs, 0, 10**6, owner)
    share_epochs = validation.integer("share_epochs", share_epochs, 0, 10**6, owner)
    batch_size = validation.positive_int("batch_size", batch_size, owner)
    if epochs + share_epochs and (data is None or not model.compiled):
        raise ValueError(
            f"{owner}: there are {epochs} epochs of pruning and {share_epochs} of shared values to "
            f"train, and {'no `data`' if data is None else f'model {model.name!r} not compiled'}. "
            "Give `data` and call model.compile(optimizer, loss), or set both to 0."
        )
    chosen = codebook_candidates(model, layers, None, owner)
    chosen = chosen if layers is not None else [layer for layer in chosen if layer.trainable]
    if not chosen:
        raise ValueError(f"{owner}: model '{model.name}' has no trainable Dense or Conv2D layer.")
    places = {id(layer): number for number, layer in enumerate(matching.leaf_layers(model))}
    shares = {places[id(layer)]: share for layer, share in _shares(sparsity, chosen, owner)}

    def train(student, epochs, *more):
        student.compile_from_config(model.get_compile_config())
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        return student.fit(
            x,
            y,
            sample_weight=weights,
            batch_size=batch_size if y is not None else None,
            epochs=epochs,
            validation_data=validation_data,
            callbacks=[*more, *(callbacks or ())],
            verbose=verbose,
        ).history

    pruned = rebuild(model, {})
    leaves = matching.leaf_layers(pruned)
    by_share = {leaves[number]: share for number, share in shares.items() if share}
    history = {}
    if by_share and epochs:
        steps = epochs * _batches(data, batch_size)
        rules = {layer: _schedule(share, steps) for layer, share in by_share.items()}
        history["pruned"] = train(pruned, epochs, MagnitudePruning(rules=rules))
    else:
        for number, share in shares.items():
            # Each call makes new layers.
            layer = matching.leaf_layers(pruned)[number]
            pruned = prune_weights(pruned, "magnitude", share, layers=[layer])
    pruned = strip(pruned)
    leaves = matching.leaf_layers(pruned)
    new = {id(leaves[number]): bits[type(leaves[number])] for number in shares}

    def shared(layer):
        return CODEBOOK_LAYERS[type(layer)].from_layer(layer, bits=new[id(layer)], init="linear")

    result = convert(pruned, {lambda layer: id(layer) in new: shared})
    if share_epochs:
        history["shared"] = train(result, share_epochs)
    elif model.compiled:
        result.compile_from_config(model.get_compile_config())
    leaves = matching.leaf_layers(result)
    return DeepCompression(result, [leaves[number] for number in sorted(shares)], history)


def _shares(sparsity, layers, owner):
    """`(layer, share to prune)` for each layer."""
    rules = sparsity if isinstance(sparsity, dict) else {"*": sparsity}
    for key, share in rules.items():
        if not isinstance(share, numbers.Real) or isinstance(share, bool) or not 0 <= share < 1:
            raise ValueError(
                f"{owner}: `sparsity` must be a share in [0, 1), or a dict of such; got {share!r}"
                f"{f' for {matching.describe(key)}' if rules is sparsity else ''}. 0.9 leaves a "
                "tenth of the weights."
            )
    found = {id(layer): rules[key] for layer, key in matching.resolve(rules, layers)}
    return [(layer, float(found.get(id(layer), 0))) for layer in layers]


def _schedule(share, steps):
    end = max(1, int(_RAMP * steps))
    return PolynomialDecay(0.0, share, begin_step=0, end_step=end, frequency=max(1, end // _ROUNDS))


def _batches(data, batch_size):
    """Batches of an epoch."""
    x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    if y is not None:
        return -(-len(keras.tree.flatten(x)[0]) // batch_size)
    try:
        return len(data)
    except TypeError:
        # A dataset that does not know: an epoch will run over all of it, too.
        return sum(1 for _ in data)
