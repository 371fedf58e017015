"""`prune_weights`: score every weight, choose, mask, in one call."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.convert import check_graph, rebuild
from keras_compress.pruning import criteria, masks
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion
from keras_compress.pruning.prunable import all_layers, prunable_kernels
from keras_compress.pruning.pruning_mask import PruningMask


def prune_weights(
    model,
    criterion="magnitude",
    sparsity=None,
    data=None,
    *,
    layers=None,
    scope="layer",
    granularity="weight",
    block_size=None,
    keep_weak=None,
    seed=0,
    loss=None,
    batch_size=64,
):
    """Sets the weights of a model that matter least to zero, and holds them there.

    Each pruned kernel gets a `PruningMask`, as `kc.callbacks.MagnitudePruning` gives it: a later
    `fit` trains the other weights and keeps the zeros. Weights that are pruned already stay so, and
    count: `sparsity` is the share of zeros afterwards. `kc.pruning.strip` makes the result a plain
    model.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        criterion: An object of `kc.pruning.criteria` that scores single weights, or its name
            (`"magnitude"`, `"obd"`, `"obs"`, `"correlation"`).
        sparsity: Share of the weights to prune, in [0, 1). `None` only for a criterion that
            chooses by itself (`IntraKernelStrided`).
        data: Where the criterion needs it: an array, `(x, y)` or an iterable of batches.
        layers: Names, globs, classes, layers or predicates; `None` for all trainable layers with a
            kernel but embeddings.
        scope: `"layer"`: the same share of each kernel. `"global"`: one order for all kernels, so
            that some lose more than others; make their scores comparable by the criterion's
            `normalize=`. Of each kernel something stays.
        granularity: What is pruned as one, see `kc.callbacks.MagnitudePruning`; the score of a
            group is the mean of its weights' scores.
        block_size: `(rows, columns)`, for `granularity="block"`.
        keep_weak: `None`: the highest scores stay. A share in [0, 1]: of the weights that stay, so
            many are drawn at random from the lower half of the scores, and the others from the
            upper half (Sun et al. keep 0.25 weak ones). For `granularity="weight"`, by layer.
        seed: Integer seed of that draw.
        loss: For criteria that look at gradients; `None` for the compiled loss.
        batch_size: Rows of `data` at a time.

    Returns:
        A new model, compiled like `model` if that is.

    Raises:
        ValueError: if the model has no graph, `layers` chooses no kernel, the criterion scores
            channels, arguments do not go together, or data is missing or does not fit.

    Reference:
        Sun, Wang, Tang, "Sparsifying Neural Network Connections for Face Recognition", 2016, for
        `keep_weak`.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> pruned = kc.pruning.prune_weights(model, "magnitude", 0.75)
    >>> int((keras.ops.convert_to_numpy(pruned.get_layer("fc").kernel) == 0).sum())
    96
    """
    check_graph(model, "prune_weights")
    criterion = criteria.get(criterion)
    if not isinstance(criterion, WeightCriterion):
        raise ValueError(
            f"prune_weights: {type(criterion).__name__} scores channels; those go to "
            "kc.pruning.prune_channels. Criteria of single weights: 'magnitude', 'obd', 'obs'."
        )
    choice = _Choice(criterion, sparsity, scope, granularity, block_size, keep_weak, seed)
    graph = criterion.open(model)
    kernels = criterion.parts(graph, layers)
    scores = criterion(graph, layers, data, loss, batch_size)
    return masked_copy(model, choice(kernels, [scores[kernel.name] for kernel in kernels]))


class _Choice:
    """Scores -> masks."""

    def __init__(self, criterion, sparsity, scope, granularity, block_size, keep_weak, seed):
        name = "prune_weights"
        if criterion.chooses != (sparsity is None):
            what = "chooses by itself how much" if criterion.chooses else "needs a share"
            raise ValueError(
                f"{name}: {type(criterion).__name__} {what} to prune; got sparsity={sparsity!r}. "
                f"Give sparsity={'None' if criterion.chooses else '0.5, for example'}."
            )
        self.sparsity = sparsity
        if sparsity is not None:
            self.sparsity = validation.number(
                "sparsity", sparsity, 0, 1, high_open=True, owner=name
            )
        self.scope = validation.one_of("scope", scope, ("layer", "global"), name)
        self.granularity, self.block_size = masks.check_granularity(granularity, block_size, name)
        if sparsity is not None and masks.pattern(granularity):
            masks.check_final_sparsity(granularity, sparsity, name)
        if scope == "global" and masks.pattern(granularity):
            raise ValueError(
                f"{name}: the pattern {granularity!r} prunes every kernel alike; got "
                "scope='global'. Use scope='layer'."
            )
        self.keep_weak = keep_weak
        if keep_weak is not None:
            validation.number("keep_weak", keep_weak, 0, 1, owner=name)
        plain = scope == "layer" and granularity == "weight"
        if not plain and (keep_weak is not None or criterion.chooses):
            given = "`keep_weak`" if keep_weak is not None else type(criterion).__name__
            raise ValueError(
                f"{name}: {given} goes with granularity='weight' and scope='layer'; got "
                f"granularity={granularity!r}, scope={scope!r}."
            )
        self.seed = validation.seed(seed, name)

    def __call__(self, kernels, scores):
        """Masks by name of the kernels."""
        scores = [_gone_first(k, score) for k, score in zip(kernels, scores, strict=True)]
        if self.sparsity is None:
            chosen = [score > 0 for score in scores]
        elif self.scope == "global":
            chosen = self._global(kernels, scores)
        elif self.keep_weak is not None:
            rng = np.random.default_rng(self.seed)
            chosen = [
                _with_weak(score, self.sparsity, self.keep_weak, rng, kernel)
                for kernel, score in zip(kernels, scores, strict=True)
            ]
        else:
            chosen = [self._mask(k, score) for k, score in zip(kernels, scores, strict=True)]
        return {k.name: mask & ~k.masked for k, mask in zip(kernels, chosen, strict=True)}

    def _mask(self, kernel, scores):
        return masks.mask_from_scores(
            scores, self.sparsity, self.granularity, self.block_size, kernel.output_axes
        )

    def _global(self, kernels, scores):
        pooled = [
            masks.group_scores(score, self.granularity, self.block_size, kernel.output_axes)
            for kernel, score in zip(kernels, scores, strict=True)
        ]
        sizes = np.concatenate([sizes.ravel() for _, sizes, _ in pooled])
        values = np.concatenate([_with_a_best(groups).ravel() for groups, _, _ in pooled])
        order = np.argsort(values, kind="stable")
        # As many groups as fit in the share of the weights; the best of each kernel is last.
        lost = np.cumsum(sizes[order])
        drop = int(np.searchsorted(lost, self.sparsity * sizes.sum() + 0.5, side="right"))
        keep = np.ones(len(values), bool)
        keep[order[: min(drop, np.count_nonzero(values < np.inf))]] = False
        chosen, start = [], 0
        for groups, _, restore in pooled:
            chosen.append(restore(keep[start : start + groups.size].reshape(groups.shape)))
            start += groups.size
        return chosen


def _gone_first(kernel, scores):
    """Scores under which what a mask prunes already is the least."""
    # No infinity: scores are averaged over groups.
    return np.where(kernel.masked, min(0.0, scores.min()) - 1.0, np.asarray(scores, "float64"))


def _with_a_best(groups):
    """Scores whose highest is infinite: something of each kernel stays."""
    groups = groups.astype("float64", copy=True)
    groups.flat[np.argmax(groups)] = np.inf
    return groups


def _with_weak(scores, sparsity, keep_weak, rng, kernel):
    """Mask of so many weights, a share of them drawn from the lower half of the scores."""
    flat = scores.ravel()
    # What is pruned already is in neither half.
    order = np.argsort(flat, kind="stable")[np.count_nonzero(kernel.masked) :]
    lower, upper = np.split(order, [len(order) // 2])
    kept = flat.size - masks.drop_count(flat.size, sparsity)
    weak = int(np.floor(keep_weak * kept + 0.5))
    if kept > len(order):
        raise ValueError(
            f"prune_weights: {1 - len(order) / flat.size:.4f} of '{kernel.name}' is pruned "
            f"already; got sparsity={sparsity:g}, which is less."
        )
    if weak > len(lower) or kept - weak > len(upper):
        least, most = max(0, kept - len(upper)) / kept, min(len(lower), kept) / kept
        raise ValueError(
            f"prune_weights: at sparsity={sparsity:g}, {kept} of the {len(order)} weights of "
            f"'{kernel.name}' stay, of which {least:.3f} to {most:.3f} can be of the lower half; "
            f"got keep_weak={keep_weak:g}."
        )
    mask = np.zeros(flat.size, bool)
    mask[rng.choice(lower, weak, replace=False)] = True
    mask[rng.choice(upper, kept - weak, replace=False)] = True
    return mask.reshape(scores.shape)


def masked_copy(model, chosen, values=None):
    """A copy of a model whose kernels are under masks.

    Args:
        model: A built Sequential or functional model. It is not changed.
        chosen: Dict from the name of a kernel (see `prunable_kernels`) to a boolean array of its
            shape, true where weights stay.
        values: Dict from the name of a kernel to new values of its weights, or `None`.

    Returns:
        The new model.
    """
    new = rebuild(model, {})
    for layer in all_layers(new):
        for mask in vars(layer).values():
            if isinstance(mask, PruningMask):
                # The copy got the variable's value, which the constraint must be told of.
                mask.set_mask(mask.read_mask())
    for kernel in prunable_kernels(new):
        if kernel.name in chosen:
            mask, _ = kernel.install_mask()
            mask.set_mask(chosen[kernel.name])
            weight = keras.ops.convert_to_numpy(kernel.variable)
            weight = (values or {}).get(kernel.name, weight).astype(weight.dtype)
            kernel.variable.assign(np.where(chosen[kernel.name], weight, np.zeros_like(weight)))
    return new
