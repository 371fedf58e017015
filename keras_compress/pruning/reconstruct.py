"""`reconstruct`: what the layers of a pruned model read is less; their kernels make up for it."""

import keras
import numpy as np
import scipy.linalg

from keras_compress import matching, validation
from keras_compress.convert import check_graph, rebuild
from keras_compress.pruning.criteria.contributions import Contributions
from keras_compress.pruning.criteria.optimal_brain_surgeon import damped
from keras_compress.pruning.criteria.patches import PatchSampler
from keras_compress.pruning.criteria.reader_criterion import (
    is_linear,
    kernel_matrix,
    lowered_readers,
)
from keras_compress.pruning.surgery import FIXED, ChannelGraph
from keras_compress.samples import Samples

METHODS = ("least_squares", "scale")


def reconstruct(
    pruned,
    original,
    data,
    layers=None,
    method="least_squares",
    *,
    images=256,
    positions=10,
    damping=1e-6,
    seed=0,
    batch_size=64,
):
    """Refits the kernels of a pruned model to the outputs that the layers had before.

    Layer after layer, in the order of the graph: the outputs of the original's layer, before its
    activation, are the target at sampled positions; the inputs are those of the pruned model, with
    the layers before it refitted already, so that errors do not add up.

    Call it right after the channels were removed: which ones are left is read off the weights. Or
    let `kc.pruning.prune_channels(..., reconstruct=...)` do both.

    Args:
        pruned: The pruned model. It is not changed.
        original: The model that it was cut from. It is not changed.
        data: An array, `(x, y)` or an iterable of batches; targets are not looked at.
        layers: Names, globs, classes, layers of `pruned` or predicates of Dense layers and
            convolutions to refit; `None` for all that read fewer channels than before.
        method: `"least_squares"`: new kernels and biases (He et al.). `"scale"`: one factor for
            each channel that a layer reads (Luo et al.): few numbers, for few samples.
        images: Number of samples that patches are taken from, drawn from the data.
        positions: Number of output positions of each sample.
        damping: Of the least squares: what is fitted is the change, and this share of the mean
            square of its coefficients' inputs is the penalty on it; above 0. Where there are fewer
            rows than inputs, of all solutions the one nearest to the pruned kernel is taken.
        seed: Of the draws.
        batch_size: Rows of `data` at a time.

    Returns:
        A new model like `pruned`, compiled like it if that is.

    Raises:
        ValueError: if a model has no graph, `pruned` is not `original` with channels removed,
            `layers` chooses nothing that can be refitted, or data does not fit.

    Reference:
        He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", 2017;
        Luo, Wu, Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression",
        2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(200, 8))
    >>> small = kc.pruning.prune_channels(model, "l1", 0.5)
    >>> refitted = kc.pruning.reconstruct(small, model, x)
    >>> y = model.predict(x, verbose=0)
    >>> error = lambda other: np.square(other.predict(x, verbose=0) - y).mean()
    >>> bool(error(refitted) < 0.5 * error(small))
    True
    """
    owner = "reconstruct"
    validation.one_of("method", method, METHODS, owner)
    check_graph(pruned, owner)
    graph = ChannelGraph(original)
    kept = _what_is_left(graph, ChannelGraph(pruned))
    options = {"images": images, "positions": positions, "damping": damping, "seed": seed}
    return refit(pruned, graph, kept, data, layers, method, batch_size=batch_size, **options)


def refit(
    pruned,
    graph,
    kept,
    data,
    layers,
    method,
    *,
    images=256,
    positions=10,
    damping=1e-6,
    seed=0,
    batch_size=64,
):
    """As `reconstruct`, where it is known which channels are left.

    Args:
        graph: `ChannelGraph` of the original.
        kept: Boolean array over its channel numbers.
    """
    owner = "reconstruct"
    damping = validation.number("damping", damping, 0, 1, low_open=True, owner=owner)
    new = ChannelGraph(rebuild(pruned, {}))
    pairs = _pairs(graph, new, pruned, layers, owner)
    if not pairs:
        return new.model
    samples = Samples(graph.model, data, batch_size, owner=owner)
    sampler = PatchSampler(samples, images, positions, seed, owner)
    before, after = zip(*pairs, strict=True)
    targets = _outputs(graph, before, kept, sampler, owner)
    refitted = {"least_squares": _least_squares, "scale": _scaled}[method]
    for part, lowered, target in zip(
        after, lowered_readers(new, after, owner), targets, strict=True
    ):
        rows = np.concatenate([rows for _, (rows,) in sampler.rows(new.graph, [lowered])])
        matrix = kernel_matrix(lowered, part)
        error = target - rows @ matrix - _bias(part.layer)
        matrix, shift = refitted(part, rows, matrix, error, damping)
        part.variable.assign(lowered.from_matrices(matrix[None]))
        if part.layer.use_bias:
            part.layer.bias.assign(_bias(part.layer) + shift)
    return new.model


def _pairs(graph, new, pruned, layers, owner):
    """Pairs of a `Consumer` of the original and that of the pruned model, which is to be fitted."""
    after = {part.name: part for part in new.consumers if is_linear(part)}
    before = {part.name: part for part in graph.consumers if is_linear(part)}
    if layers is None:
        names = [n for n, part in after.items() if len(part.channels) < len(before[n].channels)]
    else:
        # Keys may be layers of the model that was given.
        given = {p.layer: p.name for p in ChannelGraph(pruned).consumers if is_linear(p)}
        keys = [layers] if isinstance(layers, str) or callable(layers) else list(layers)
        chosen = {given[layer] for layer, _ in matching.resolve(keys, dict.fromkeys(given))}
        names = [name for name in after if name in chosen]
    return [(before[name], after[name]) for name in names]


def _outputs(graph, parts, kept, sampler, owner):
    """What layers of the original give before their activation, of the outputs that are left."""
    lowered = lowered_readers(graph, parts, owner)
    matrices, biases = [], []
    for one, part in zip(lowered, parts, strict=True):
        stays = slice(None)
        positions = graph.positions(part.variable)
        if len(part.variable.shape) - 1 in positions:
            stays = kept[positions[len(part.variable.shape) - 1]]
        matrices.append(kernel_matrix(one, part)[:, stays])
        biases.append(_bias(part.layer)[stays] if part.layer.use_bias else 0.0)
    found = [[] for _ in parts]
    for index, (rows,) in sampler.rows(graph.graph, lowered):
        found[index].append(rows @ matrices[index] + biases[index])
    return [np.concatenate(batches) for batches in found]


def _least_squares(part, rows, matrix, error, damping):
    """The new kernel, and what is added to the bias."""
    if part.layer.use_bias:
        rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    change = smallest_change(rows, error, damping)
    return matrix + change[: len(matrix)], change[len(matrix) :].sum(0)


def _scaled(part, rows, matrix, error, damping):
    """The kernel with a factor for each input channel; the bias stays."""
    # Channels are told apart by place here: those that must stay have factors too.
    numbers = np.where(part.channels == FIXED, -1 - np.arange(len(part.channels)), part.channels)
    given = Contributions(matrix, numbers)
    given.update(rows)
    products = given.products()
    overlaps = given.summed(matrix * (rows.T @ error))
    change = np.linalg.solve(damped(products, damping), overlaps)
    factors = np.tile(1 + change[given.columns], len(matrix) // len(numbers))
    return matrix * factors[:, None], 0.0


def smallest_change(rows, error, damping):
    """`D` that minimises `|error - rows D|^2 + ridge |D|^2`: never worse than none.

    Args:
        rows: float64 array `(rows, inputs)`.
        error: Array `(rows, outputs)`.
        damping: The ridge, as a share of the mean squared norm of an input.
    """
    if len(rows) >= rows.shape[1]:
        products = damped(rows.T @ rows, damping)
        return scipy.linalg.solve(products, rows.T @ error, assume_a="pos")
    ridge = damping * np.square(rows).sum() / rows.shape[1]
    products = rows @ rows.T + (ridge or 1.0) * np.eye(len(rows))
    return rows.T @ scipy.linalg.solve(products, error, assume_a="pos")


def _bias(layer):
    return keras.ops.convert_to_numpy(layer.bias).astype("float64") if layer.use_bias else 0.0


def _what_is_left(graph, new):
    """Which channels of a model a pruned form still has, by the weights that make them."""
    pruned = {producer.name: producer for producer in new.producers}
    kept = np.ones(graph.count, bool)
    for producer in graph.producers:
        if producer.name not in pruned:
            raise ValueError(
                f"reconstruct: the pruned model has no layer '{producer.name}'; the other is not "
                "the model that it was cut from."
            )
        # Channels are made in the order of the graph: what this layer reads is known by now.
        before = _channel_rows(graph, producer, kept)
        after = _channel_rows(new, pruned[producer.name], np.ones(new.count, bool))
        stays = _matched(before, after)
        if stays is not None:
            kept[producer.channels[~stays]] = False
        if stays is None or not kept[FIXED] or kept[producer.channels].sum() != len(after):
            raise ValueError(
                f"reconstruct: the channels of '{producer.name}' in the pruned model are not a "
                "part of those in the original. Call it right after the channels were removed, "
                "before training, or use prune_channels(..., reconstruct=...)."
            )
    return kept


def _channel_rows(graph, producer, kept):
    """The weights that make each channel, `(channels, weights)`, of inputs that are kept."""
    parts = []
    for variable in (producer.variable, getattr(producer.layer, "bias", None)):
        if variable is None:
            continue
        array = keras.ops.convert_to_numpy(variable)
        places = graph.positions(variable)
        own = producer.place if variable is producer.variable else 0
        for axis, channels in places.items():
            if axis != own:
                array = np.compress(kept[channels], array, axis)
        parts.append(np.moveaxis(array, own, 0).reshape(array.shape[own], -1))
    return np.concatenate([p for p in parts if len(p) == len(parts[0])], 1)


def _matched(before, after):
    """Which rows of `before` the rows of `after` are, in order; `None` if they are not."""
    keys = [row.tobytes() for row in before]
    stays = np.zeros(len(before), bool)
    place = 0
    for row in after:
        if row.tobytes() not in keys[place:]:
            return None
        place = keys.index(row.tobytes(), place) + 1
        stays[place - 1] = True
    return stays
