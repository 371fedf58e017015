"""`prune_maxout`: removes the linear pieces of maxout units that seldom win."""

import collections

import numpy as np

from keras_compress import matching, validation
from keras_compress.call_graph import CallGraph, Rebuilder
from keras_compress.convert import check_graph
from keras_compress.layers.maxout import Maxout
from keras_compress.pruning.criteria.observer import Observer
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.samples import Samples


def prune_maxout(model, data, pieces, *, layers=None, batch_size=64):
    """Removes the least active pieces of every maxout unit.

    Over the data it is counted how often each linear piece is the largest of its unit; the
    `pieces` of each unit that win most stay. Fine-tune the result, and take away the next piece;
    with one left the layer is a linear one.

    Args:
        model: A built Sequential or functional model with `kc.layers.MaxoutDense` or
            `MaxoutConv2D` layers, nested models included. It is not changed.
        data: An array, `(x, y)` or an iterable of batches; targets are not looked at.
        pieces: Pieces of a unit that stay.
        layers: Names, globs, classes, layers or predicates of the maxout layers to prune; `None`
            for all. Those that have no more pieces than that are left alone.
        batch_size: Rows of `data` at a time.

    Returns:
        A smaller model of the same layers, compiled like `model` if that is.

    Raises:
        ValueError: if no maxout layer has more pieces, the model has no graph or is under a pruning
            mask, or data is missing or does not fit.

    Reference:
        Rueda, Grzeszick, Fink, "Neuron Pruning for Compressing Deep Networks Using Maxout
        Architectures", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     kc.layers.MaxoutDense(6, pieces=4),
    ...     keras.layers.Dense(1),
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(32, 8))
    >>> small = kc.pruning.prune_maxout(model, x, pieces=2)
    >>> model.count_params(), small.count_params()
    (223, 115)
    """
    name = "prune_maxout"
    check_graph(model, name)
    refuse_masked(model, name)
    pieces = validation.positive_int("pieces", pieces, name)
    samples = Samples(model, data, batch_size, owner=name)
    graph = CallGraph(model)
    calls = [call for call in graph.calls if isinstance(call.operation, Maxout)]
    if layers is not None:
        keys = [layers] if isinstance(layers, str) or callable(layers) else layers
        found = matching.resolve(keys, dict.fromkeys(call.operation for call in calls))
        chosen = {id(layer) for layer, _ in found}
        calls = [call for call in calls if id(call.operation) in chosen]
    larger = [call for call in calls if call.operation.pieces > pieces]
    if not larger:
        have = ", ".join(f"'{call.operation.name}': {call.operation.pieces}" for call in calls)
        raise ValueError(
            f"{name}: no maxout layer has more than {pieces} pieces (has: {have or 'none'}). Give "
            "a smaller pieces=, or build the model with kc.layers.MaxoutDense."
        )
    observer = Observer(graph, [call.inputs[0] for call in larger])
    wins = collections.Counter()
    for inputs, _ in samples:
        for call, tensor in zip(larger, observer.activations(inputs), strict=True):
            wins[call.operation] = wins[call.operation] + call.operation.count_wins(tensor)
    changes = {}
    for layer, counts in wins.items():
        # Of equally active pieces the first stay.
        order = np.argsort(-counts, axis=1, kind="stable")
        changes[id(layer)] = layer.with_pieces(np.sort(order[:, :pieces], axis=1))
    return Rebuilder(model, changes).run()
