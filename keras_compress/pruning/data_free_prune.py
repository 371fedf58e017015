"""`data_free_prune`: merges neurons that do the same, without data."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.convert import check_graph, rebuild
from keras_compress.pruning import masks
from keras_compress.pruning.criteria.data_free import DataFree, merging
from keras_compress.pruning.parts import places_of, readers_of
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.pruning.surgery import ChannelGraph, cut


def data_free_prune(model, ratio=None, layers=None):
    """Removes neurons whose work another one of their layer does nearly as well.

    Of each layer, in the order of the graph, the two neurons of the least saliency (see
    `kc.pruning.criteria.DataFree`) are merged: one goes, and its outgoing weights are added to
    those of the other. And so on, on what the merges before have left. Then what went is cut out.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        ratio: Share of the neurons of each layer to remove, in [0, 1). `None`: as many as can be
            merged at a saliency below the mode of all saliencies of the layer, which is the paper's
            stopping rule.
        layers: Names, globs, classes, layers or predicates of the layers whose neurons are merged;
            `None` for all that can be.

    Returns:
        A smaller model of the same layers, compiled like `model` if that is compiled.

    Raises:
        ValueError: if the model has no graph or is under a pruning mask, or no chosen layer has
            neurons that can be merged.

    Reference:
        Srinivas, Babu, "Data-free Parameter Pruning for Deep Neural Networks", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> kernel = np.random.default_rng(0).normal(size=(8, 8))
    >>> model.get_layer("hidden").set_weights([np.tile(kernel, 2), np.zeros(16)])
    >>> small = kc.pruning.data_free_prune(model, 0.5)
    >>> x = np.ones((1, 8))
    >>> small.get_layer("hidden").units, np.allclose(small(x), model(x), atol=1e-5)
    (8, True)
    """
    owner = "data_free_prune"
    check_graph(model, owner)
    refuse_masked(model, owner)
    if ratio is not None:
        validation.number("ratio", ratio, 0, 1, high_open=True, owner=owner)
    # Chosen by the layers that were given; merged in a copy, whose kernels may change.
    names = {part.name for part in DataFree().parts(ChannelGraph(model), layers)}
    graph = ChannelGraph(rebuild(model, {}))
    kept = np.ones(graph.count, bool)
    for producer in graph.producers:
        if producer.name not in names:
            continue
        found = merging(graph, producer)
        if ratio is None:
            number = np.count_nonzero(np.maximum.accumulate(found.costs) < _mode(found.saliencies))
        else:
            number = masks.drop_count(len(producer.channels), ratio)
        removed, into = found.removed[:number], found.into[:number]
        for reader in readers_of(graph, producer.channels):
            _merge(reader, places_of(reader, producer.channels), removed, into)
        kept[producer.channels[removed]] = False
    return cut(graph, kept)


def _merge(reader, places, removed, into):
    kernel = keras.ops.convert_to_numpy(reader.variable)
    rows = np.moveaxis(kernel.astype("float64"), reader.place, 0)
    for goes, stays in zip(removed, into, strict=True):
        rows[places[stays]] += rows[places[goes]]
        rows[places[goes]] = 0
    reader.variable.assign(np.moveaxis(rows, 0, reader.place).astype(kernel.dtype))


def _mode(saliencies):
    """Where the histogram of the saliencies is the highest."""
    counts, edges = np.histogram(saliencies[np.isfinite(saliencies)], "auto")
    highest = counts.argmax()
    return (edges[highest] + edges[highest + 1]) / 2
