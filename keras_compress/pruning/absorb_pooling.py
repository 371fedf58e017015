"""`absorb_pooling`: convolutions take the strides of the pooling behind them."""

import collections

import keras

from keras_compress.call_graph import CallGraph, Rebuilder, values_of
from keras_compress.convert import new_like
from keras_compress.pruning.fold_batchnorm import fold_batchnorm
from keras_compress.pruning.imitation import Imitation, convolution_before, find, names_of

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_POOLING = tuple(
    getattr(keras.layers, f"{kind}Pooling{rank}D")
    for kind in ("Max", "Average")
    for rank in (1, 2, 3)
)


def absorb_pooling(
    model,
    data,
    *,
    layers=None,
    epochs=5,
    learning_rate=1e-3,
    batch_size=32,
    seed=None,
    verbose=1,
):
    """Replaces convolutions with pooling behind them by convolutions with the pooling's strides.

    The new convolution computes only the outputs that the pooling would leave, and learns to give
    what it gave: convolution by convolution, from the first to the last, each trained alone on the
    mean squared difference to the given model's pooled feature map. Batch normalisations are folded
    first (see `fold_batchnorm`); activations between convolution and pooling stay, behind the
    convolution. Fine-tune the result.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        data: Samples to imitate on: an array, `(x, y)` or an iterable of batches that can be gone
            through again and again; targets are not looked at.
        layers: Names, globs, classes, layers or predicates of the pooling layers to absorb; `None`
            for all that can be.
        epochs: Passes over the data for each convolution; 0 only changes the graph.
        learning_rate: Of Adam in these.
        batch_size: Rows of a batch, where `data` is arrays.
        seed: Of the order of the samples; `None` for a different one each time.
        verbose: 0 for no progress bar, 1 for one for each convolution, with its loss.

    Returns:
        A new model with fewer layers, compiled like `model` if that is.

    Raises:
        ValueError: if no pooling can be absorbed or one that `layers` names cannot, the model has
            no graph or is under a pruning mask, or data is missing or does not fit.

    Reference:
        Li, Wang, Kong, "DeepRebirth: Accelerating Deep Neural Network Execution on Mobile Devices",
        2018.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
    ...     keras.layers.MaxPooling2D(name="pool"),
    ...     keras.layers.Flatten(name="flatten"),
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(32, 8, 8, 1))
    >>> small = kc.pruning.absorb_pooling(model, x, epochs=1, verbose=0)
    >>> [layer.name for layer in small.layers], small.get_layer("conv").strides
    (['conv', 'flatten'], (2, 2))
    """
    name = "absorb_pooling"
    old = fold_batchnorm(model)
    # The folded copy has the names, but layers and predicates are of the model that was given.
    chosen = names_of(model, layers, _POOLING)
    imitation = Imitation(old, data, epochs, learning_rate, batch_size, seed, verbose, name)
    old_graph = CallGraph(old)
    paths = _absorbable(old_graph, chosen, name)
    new = old
    for path in paths:
        graph, pool = CallGraph(new), find(old_graph, path)
        convolution, between = _before(graph, find(graph, path))
        layer = _strided(convolution, find(graph, path))
        arrays = imitation.train(
            layer,
            values_of(convolution.operation),
            [call.operation for call in between],
            (graph, old_graph),
            convolution.inputs[0],
            [pool.output],
        )
        changes = {
            id(convolution.operation): (layer, arrays),
            id(find(graph, path).operation): (None, ()),
        }
        new = Rebuilder(new, changes).run()
    return new


def _absorbable(graph, chosen, owner):
    """Paths of the pooling calls to absorb."""
    paths, refused = [], []
    for call in graph.calls:
        pool = call.operation
        if type(pool) not in _POOLING or (chosen is not None and pool.name not in chosen):
            continue
        found = _before(graph, call)
        if found is None:
            refused.append(
                f"'{pool.name}' does not follow a convolution that nothing else reads, or is "
                "called more than once"
            )
        elif _strided(found[0], call) is None:
            convolution = found[0].operation.name
            refused.append(f"no strides of '{convolution}' give as many positions as '{pool.name}'")
        else:
            paths.append(call.path)
    if not paths or (chosen is not None and refused):
        why = "; ".join(refused) or "the model has no max or average pooling"
        raise ValueError(
            f"{owner}: {why}. Pooling can be absorbed behind a convolution (with activations in "
            "between), of fixed input size, without dilation."
        )
    return paths


def _before(graph, pool):
    uses = collections.Counter(id(call.operation) for call in graph.calls)
    if uses[id(pool.operation)] > 1:
        return None
    return convolution_before(pool.inputs[0], uses, _CONVOLUTIONS)


def _strided(convolution, pool):
    """The convolution with the strides of the pooling too, or `None` if it gives other sizes."""
    layer, shape = convolution.operation, convolution.inputs[0].shape
    same_format = layer.data_format == pool.operation.data_format
    dilated = any(rate > 1 for rate in layer.dilation_rate)
    if not same_format or dilated or None in shape[1:]:
        return None
    steps = zip(layer.strides, pool.operation.strides, strict=True)
    config = {**layer.get_config(), "strides": tuple(a * b for a, b in steps)}
    sizes = _sizes(pool.output.shape, layer)
    for padding in dict.fromkeys((layer.padding, "same", "valid")):
        new = new_like(layer, {**config, "padding": padding})
        try:
            given = new.compute_output_shape(shape)
        except ValueError:
            # The kernel is larger than its input.
            continue
        if _sizes(given, layer) == sizes:
            return new
    return None


def _sizes(shape, layer):
    return tuple(shape[2:] if layer.data_format == "channels_first" else shape[1:-1])
