"""`obs_prune`: weights removed one by one, the others of their output changed to make up for it."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.pruning import masks
from keras_compress.pruning.criteria.optimal_brain_surgeon import (
    OptimalBrainSurgeon,
    damped,
    layer_hessians,
)
from keras_compress.pruning.prune_weights import masked_copy
from keras_compress.samples import Samples

# Removals after which inverses are written out anew, and bytes of inverses held at a time.
_STAGE = 64
_BYTES = 2**25


def obs_prune(model, sparsity, data, *, layers=None, damping=1e-6, batch_size=64):
    """Prunes weights by Optimal Brain Surgeon, and changes those that stay to make up for it.

    Of each layer, the weight goes whose removal costs the least squared error of the layer's
    outputs over the data, the other weights of its output get the values that make this error
    least, and so on, weight by weight, until the sparsity is met. Layers are treated apart: each
    with the inputs that it has in the model as given. Biases stay.

    The result is masked as that of `kc.pruning.prune_weights`: a later `fit` keeps the zeros, and
    `kc.pruning.strip` makes it a plain model. Weights that are pruned already stay so, and count.

    Args:
        model: A built Sequential or functional model. It is not changed.
        sparsity: Share of the weights of each kernel to prune, in [0, 1).
        data: An array, `(x, y)` or an iterable of batches; labels are not used. Give more samples
            than a layer has inputs.
        layers: Names, globs, classes, layers or predicates of Dense layers and convolutions; `None`
            for all trainable ones. Other layers with kernels must be left out.
        damping: Added to the diagonal of `X^T X / N`, as a share of the mean of that diagonal, in
            (0, 1]. A larger one changes the weights less: for few samples.
        batch_size: Rows of `data` at a time.

    Returns:
        A new model, compiled like `model` if that is.

    Raises:
        ValueError: if the model has no graph, `layers` chooses nothing or a layer of another kind,
            or data does not fit.

    Reference:
        Hassibi, Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", 1993;
        Frantar, Alistarh, "Optimal Brain Compression", 2022, for the order over all outputs.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> x = np.random.default_rng(0).normal(size=(64, 16)) @ np.tri(16)
    >>> pruned = kc.pruning.obs_prune(model, 0.5, x)
    >>> plain = kc.pruning.prune_weights(model, "magnitude", 0.5)
    >>> error = lambda other: np.square(other.predict(x, verbose=0) - y).mean()
    >>> y = model.predict(x, verbose=0)
    >>> bool(error(pruned) < 0.5 * error(plain))
    True
    """
    sparsity = validation.number("sparsity", sparsity, 0, 1, high_open=True, owner="obs_prune")
    criterion = OptimalBrainSurgeon(damping)
    graph = criterion.open(model)
    kernels = criterion.parts(graph, layers)
    samples = Samples(model, data, batch_size, owner="obs_prune")
    chosen, values = {}, {}
    hessians = layer_hessians(graph, kernels, samples, "obs_prune")
    for kernel, (lowered, moments) in zip(kernels, hessians, strict=True):
        weight = keras.ops.convert_to_numpy(kernel.variable).astype("float64")
        # What is under a mask already is zero, and goes first.
        drop = max(masks.drop_count(weight.size, sparsity), int(kernel.masked.sum()))
        gone, pruned = remove_weights(
            lowered.to_matrices(weight), damped(moments, criterion.damping), drop
        )
        chosen[kernel.name] = ~lowered.from_matrices(gone)
        values[kernel.name] = lowered.from_matrices(pruned)
    return masked_copy(model, chosen, values)


def remove_weights(matrices, hessians, count):
    """Removes weights one by one, each the one that costs the least, and adapts the others.

    The cost is `sum over outputs of dw^T H dw / 2`. Zeros of the matrices go first, at no cost.

    Args:
        matrices: float64 array `(groups, inputs, outputs)`.
        hessians: Array `(groups, inputs, inputs)`, positive definite; each is shared by the outputs
            of its group.
        count: How many weights go; less than there are.

    Returns:
        `(gone, weights)`, both of the shape of `matrices`: a boolean array and the new weights.
    """
    groups, inputs, outputs = matrices.shape
    order = np.empty((groups, outputs, inputs), int)
    costs = np.empty((groups, outputs, inputs))
    each = max(1, _BYTES // (8 * inputs**2))
    for group, hessian in enumerate(hessians):
        inverse = np.linalg.inv(hessian)
        for start in range(0, outputs, each):
            part = slice(start, start + each)
            order[group, part], costs[group, part] = _removals(
                matrices[group, :, part].T.copy(), inverse
            )
    # Outputs do not interact. Greedily over all of them, a removal that is cheaper than the one
    # before it in its output comes right after that one: in the order of the highest cost so far.
    costs = np.maximum.accumulate(costs, -1)
    places = np.argsort(costs, axis=None, kind="stable")[:count]
    removed = np.zeros(costs.size, bool)
    removed[places] = True
    numbers = removed.reshape(costs.shape).sum(-1)
    gone = np.zeros((groups, outputs, inputs), bool)
    np.put_along_axis(gone, order, np.arange(inputs) < numbers[..., None], -1)
    weights = np.empty((groups, outputs, inputs))
    for group, hessian in enumerate(hessians):
        for output in range(outputs):
            weights[group, output] = _adapted(
                matrices[group, :, output], hessian, gone[group, output]
            )
    return gone.transpose(0, 2, 1), weights.transpose(0, 2, 1)


def _removals(weights, inverse):
    """The order in which the weights of some outputs go, and the cost of each removal.

    Removing weight q takes `c c^T / c_q` from the inverse, `c` being its column q. The outputs'
    inverses soon differ, so each would be read and written at every step. Instead a stage of
    removals only keeps its vectors `c / sqrt(c_q)`, computes the columns that it needs from them,
    and takes all of them from the inverse at once, as a matrix product, of the rows and columns
    that are still there.

    Args:
        weights: Array `(outputs, inputs)`; used up.
        inverse: Array `(inputs, inputs)`.

    Returns:
        `(order, costs)`: arrays `(outputs, inputs)`.
    """
    outputs, inputs = weights.shape
    rows = np.arange(outputs)
    order = np.empty((outputs, inputs), int)
    costs = np.empty((outputs, inputs))
    left = np.tile(np.arange(inputs), (outputs, 1))
    inverses = np.tile(inverse, (outputs, 1, 1))
    for begin in range(0, inputs, _STAGE):
        size = left.shape[1]
        steps = min(_STAGE, size)
        vectors = np.zeros((outputs, steps, size))
        diagonal = np.diagonal(inverses, axis1=1, axis2=2).copy()
        there = np.ones((outputs, size), bool)
        for step in range(steps):
            cost = np.where(there, weights**2 / (2 * diagonal), np.inf)
            chosen = cost.argmin(1)
            before = vectors[:, :step]
            column = inverses[rows, chosen]
            column = column - (before[rows, :, chosen][:, None] @ before)[:, 0]
            pivot = column[rows, chosen]
            order[:, begin + step] = left[rows, chosen]
            costs[:, begin + step] = cost[rows, chosen]
            weights -= (weights[rows, chosen] / pivot)[:, None] * column
            vectors[:, step] = column / np.sqrt(pivot)[:, None]
            there[rows, chosen] = False
            # What is gone has no place in the inverse any more; rounding leaves a trace of it.
            diagonal = np.where(there, diagonal - vectors[:, step] ** 2, 1.0)
        kept = np.nonzero(there)[1].reshape(outputs, size - steps)
        left = np.take_along_axis(left, kept, 1)
        weights = np.take_along_axis(weights, kept, 1)
        vectors = np.take_along_axis(vectors, kept[:, None], 2)
        inverses = np.stack([one[np.ix_(k, k)] for one, k in zip(inverses, kept, strict=True)])
        inverses -= vectors.transpose(0, 2, 1) @ vectors
    return order, costs


def _adapted(weights, hessian, gone):
    """The weights of one output that cost the least with some of them at zero."""
    if not gone.any():
        return weights
    stays = ~gone
    change = np.linalg.solve(hessian[np.ix_(stays, stays)], hessian[np.ix_(stays, gone)])
    new = np.zeros_like(weights)
    new[stays] = weights[stays] + change @ weights[gone]
    return new
