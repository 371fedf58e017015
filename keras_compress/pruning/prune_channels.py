"""`prune_channels`: score, choose, cut, in one call."""

from keras_compress import validation
from keras_compress.convert import check_graph
from keras_compress.pruning import criteria
from keras_compress.pruning.choice import select
from keras_compress.pruning.prunable import all_layers
from keras_compress.pruning.pruning_mask import PruningMask
from keras_compress.pruning.reconstruct import METHODS, refit
from keras_compress.pruning.surgery import ChannelGraph, cut


def prune_channels(
    model,
    criterion="l1",
    target=0.5,
    data=None,
    *,
    layers=None,
    scope="global",
    min_keep=1,
    round_to=1,
    through_normalization=False,
    greedy=False,
    loss=None,
    reconstruct=None,
    batch_size=64,
):
    """Removes channels of a model for good: what comes back is a smaller ordinary Keras model.

    Filters, units and attention heads are scored by the criterion, chosen, and cut out of the
    weights of every layer that makes, passes on or reads them. Channels that must stay equal
    (residual additions, gates, concatenations, grouped and depthwise convolutions, shared layers)
    are found in the graph. Fine-tune the result.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        criterion: An object of `kc.pruning.criteria`, or its name (`"l1"`, `"taylor"`).
        target: Share of the channels to remove, in [0, 1), or a `kc.pruning.Budget`, such as
            `Budget(macs=0.5)`: half of the multiply-accumulates stay.
        data: Where the criterion or `reconstruct` needs it: an array, `(x, y)` or an iterable of
            batches.
        layers: Names, globs, classes, layers or predicates: only channels that these layers make
            are scored; `None` for all. The model's outputs are never touched.
        scope: See `select`.
        min_keep: See `select`.
        round_to: See `select`.
        through_normalization: See `select`.
        greedy: Whether the weights of input channels that are gone already do not count in the
            scores of the next layers (see `select`); for criteria of the kernel alone, such as
            `"l1"`, with `scope="layer"`.
        loss: For criteria that look at gradients; `None` for the compiled loss.
        reconstruct: `"least_squares"` or `"scale"`: refits the layers that read fewer channels to
            the outputs that they had, on `data` (see `kc.pruning.reconstruct`); `None` for not.
        batch_size: Rows of `data` at a time.

    Returns:
        A new model of the same layers, names and nesting, compiled like `model` if that is.

    Raises:
        ValueError: if the model has no graph, is under a pruning mask, or has nothing to prune, the
            target cannot be met (the least that can is given), or data is missing or does not fit.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=10)
    >>> small = kc.pruning.prune_channels(model, "l1", kc.pruning.Budget(macs=0.5))
    >>> 0.48 < kc.profile.macs(small) / kc.profile.macs(model) <= 0.5
    True
    """
    check_graph(model, "prune_channels")
    refuse_masked(model, "prune_channels")
    validation.one_of("reconstruct", reconstruct, (None, *METHODS), "prune_channels")
    criterion = criteria.get(criterion)
    if criterion.granularity == "weight":
        raise ValueError(
            f"prune_channels: {type(criterion).__name__} scores single weights; those go to "
            "kc.pruning.prune_weights."
        )
    graph = ChannelGraph(model)
    if greedy:
        scores = _greedy_scores(criterion, graph, layers)
    else:
        scores = criterion(graph, layers, data, loss, batch_size)
    kept = select(graph, scores, target, scope, min_keep, round_to, through_normalization)
    small = cut(graph, kept)
    if reconstruct is None:
        return small
    return refit(small, graph, kept, data, None, reconstruct, batch_size=batch_size)


def _greedy_scores(criterion, graph, layers):
    if not isinstance(criterion, criteria.KernelCriterion):
        raise ValueError(
            "prune_channels: greedy=True is for criteria that look at the kernel alone, such as "
            f"'l1'; got {type(criterion).__name__}."
        )
    return criterion.remaining(graph, layers)


def refuse_masked(model, caller):
    """Raises `ValueError`, for the function `caller`, if a layer is under a pruning mask."""
    for layer in all_layers(model):
        masks = [v for v in vars(layer).values() if isinstance(v, PruningMask)]
        if masks:
            raise ValueError(
                f"{caller}: '{layer.name}' is under a pruning mask, which has the shape of "
                "its kernel. Take the masks off first: kc.pruning.strip(model)."
            )
