"""`iterative_prune`: prune connections, retrain the others, and again."""

import keras

from keras_compress import validation
from keras_compress.call_graph import CallGraph
from keras_compress.convert import check_graph
from keras_compress.pruning.dropout import retraining_dropout_rate
from keras_compress.pruning.prunable import maskable_weights
from keras_compress.pruning.prune_weights import prune_weights

_DROPOUT = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


def iterative_prune(
    model,
    data,
    steps=(0.5, 0.75, 0.9),
    epochs=1,
    *,
    criterion="magnitude",
    layers=None,
    granularity="weight",
    block_size=None,
    validation_data=None,
    callbacks=None,
    batch_size=32,
    verbose=1,
):
    """Learns connections: prunes the least important weights and retrains the others, step by step.

    In each step the weights that the criterion scores lowest become zero and stay so, and the
    survivors train on from their values, with the model's compiled loss and a fresh copy of its
    optimizer (give it a smaller learning rate than at first). Each dropout is weakened as the layer
    that reads it loses connections, `rate * sqrt(left / all)`.

    Afterwards `kc.pruning.strip` makes a plain model of the result, and `kc.pruning.remove_dead`
    takes out neurons that have no connections left.

    `kc.callbacks.MagnitudePruning` does the same within one `fit`; `prune_and_finetune` removes
    channels.

    Args:
        model: A built and compiled Sequential or functional model. It is not changed.
        data: What `fit` takes: `(x, y)`, `(x, y, sample_weight)` or a dataset of batches. A
            criterion that needs data sees it, too.
        steps: Share of the weights of each kernel that is zero after each step: rising, in (0, 1).
        epochs: Epochs of training after each step.
        criterion: See `prune_weights`.
        layers: See `prune_weights`.
        granularity: See `prune_weights`.
        block_size: See `prune_weights`.
        validation_data: As in `fit`.
        callbacks: As in `fit`, for each step's.
        batch_size: Rows of a batch, where `data` is arrays.
        verbose: As in `fit`.

    Returns:
        A new model under masks, compiled like `model`; its `history` is that of the last step.

    Raises:
        ValueError: if the model is not compiled or has no graph, `steps` do not rise, or arguments
            do not go together (see `prune_weights`).

    Reference:
        S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient
        Neural Networks", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x = np.random.default_rng(0).normal(size=(64, 16))
    >>> sparse = kc.pruning.iterative_prune(model, (x, x[:, :1]), (0.5, 0.75), verbose=0)
    >>> int((keras.ops.convert_to_numpy(sparse.layers[0].kernel) == 0).sum())
    96
    """
    name = "iterative_prune"
    check_graph(model, name)
    if not model.compiled:
        raise ValueError(
            f"{name}: model '{model.name}' is not compiled, and is to be trained after each step. "
            "Compile it with an optimizer and a loss."
        )
    steps = _rising(steps, name)
    epochs = validation.integer("epochs", epochs, 0, 10**9, name)
    batches = {"batch_size": batch_size} if isinstance(data, tuple) else {}
    rates = [call.operation.rate for call in _dropouts(CallGraph(model))]
    for sparsity in steps:
        model = prune_weights(
            model,
            criterion,
            sparsity,
            data,
            layers=layers,
            granularity=granularity,
            block_size=block_size,
            batch_size=batch_size,
        )
        for call, rate in zip(_dropouts(CallGraph(model)), rates, strict=True):
            call.operation.rate = retraining_dropout_rate(rate, _lost(call))
        if epochs:
            model.fit(
                *(data if isinstance(data, tuple) else (data,)),
                epochs=epochs,
                validation_data=validation_data,
                callbacks=callbacks,
                verbose=verbose,
                **batches,
            )
    return model


def _rising(steps, owner):
    if not hasattr(steps, "__iter__") or isinstance(steps, str) or not (steps := list(steps)):
        raise ValueError(
            f"{owner}: `steps` must be the shares of zeros after each step, (0.5, 0.75) for "
            f"example; got steps={steps!r}."
        )
    for index, step in enumerate(steps):
        low = steps[index - 1] if index else 0
        validation.number(
            f"steps[{index}]", step, low, 1, low_open=True, high_open=True, owner=owner
        )
    return steps


def _dropouts(graph):
    """Calls of dropout layers, of each layer the first."""
    calls = {}
    for call in graph.calls:
        if isinstance(call.operation, _DROPOUT):
            calls.setdefault(id(call.operation), call)
    return calls.values()


def _lost(call):
    """Share of the connections that the layer that reads a dropout has lost."""
    while call is not None:
        kernels = _kernels(call.operation)
        if kernels:
            return float(kernels[0].masked.mean())
        call = call.sole_reader
    return 0.0


def _kernels(operation):
    """The `PrunableKernel`s of a layer's weights of two or more axes."""
    if not isinstance(operation, keras.layers.Layer):
        return []
    return [k for k in maskable_weights(operation) if len(k.variable.shape) > 1]
