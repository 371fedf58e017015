"""Choice: scores and a target -> the channels that stay."""

import math
import numbers

import numpy as np

from keras_compress import validation
from keras_compress.budget import Budget
from keras_compress.pruning.costs import cost_of
from keras_compress.pruning.surgery import FIXED

SCOPES = ("global", "layer")


def select(
    graph, scores, target, scope="global", min_keep=1, round_to=1, through_normalization=False
):
    """Chooses which channels of a model stay.

    Channels that are tied together (see `ChannelGraph`) are one candidate, whose score is the mean
    over all that score it. Candidates go in the order of their scores, lowest first, until the
    target is met.

    Args:
        graph: `ChannelGraph` of the model.
        scores: Dict from the name of a layer to the scores of the channels that it makes or reads,
            as a criterion gives them (in a plain dict, where a layer reads as many channels as it
            makes, they are of those it makes). Groups of channels that no score covers are kept.
            For the greedy choice of Li et al. (layer by layer, each by scores that know what is
            gone before it; `scope="layer"` and a share) a function from which channels stay to
            such a dict: `L1Filter().remaining(graph)`.
        target: Share of the candidates to remove, in [0, 1), the number of them (an integer), or a
            `Budget`.
        scope: `"global"`: one order for all layers, so that some lose more than others; make their
            scores comparable by the criterion's `normalize=`. `"layer"`: the same share of each.
        min_keep: Channels that a layer keeps at least: a number, or a share in (0, 1].
        round_to: Layers keep a multiple of this many channels (rounded up): 8 suits kernels that
            work on 8 channels at a time.
        through_normalization: Whether channels that a LayerNormalization takes statistics over
            may go. They change those of the others, so that even a channel of zeros is missed.

    Returns:
        Boolean array over the graph's channel numbers: which stay.

    Raises:
        ValueError: if no channel can go, or the target cannot be met; the least is given.
    """
    validation.one_of("scope", scope, SCOPES, "select")
    if callable(scores):
        options = (min_keep, round_to, through_normalization)
        return _greedy(graph, scores, target, scope, options)
    candidates = _Candidates(graph, scores, min_keep, round_to, through_normalization)
    order = candidates.order(scope)
    if isinstance(target, Budget):
        return _to_budget(graph, candidates, order, target)
    if isinstance(target, numbers.Integral) and not isinstance(target, bool):
        number = validation.integer("target", target, 0, len(order), "select")
        return candidates.kept(order, number)
    share = validation.number("target", target, 0, 1, high_open=True, owner="select")
    return candidates.kept(order, int(math.floor(share * candidates.count + 0.5)))


def _greedy(graph, scores, target, scope, options):
    if scope != "layer" or isinstance(target, Budget):
        raise ValueError(
            "select: the greedy choice goes layer by layer: it takes scope='layer' and a share; "
            f"got scope={scope!r}, target={target!r}."
        )
    share = validation.number("target", target, 0, 1, high_open=True, owner="select")
    kept = np.ones(graph.count, bool)
    # One choice of all, for the errors and for which groups are candidates.
    may_go = _Candidates(graph, scores(kept), *options).groups
    for group in may_go:
        names = {producer.name for producer in group.producers}
        known = {name: values for name, values in scores(kept).items() if name in names}
        kept &= select(graph, known, share, "layer", *options)
    return kept


def _to_budget(graph, candidates, order, budget):
    cost = cost_of(budget.what, graph, budget.latency_table)
    whole = cost(np.ones(graph.count, bool))
    low, high = 0, len(order)
    least = cost(candidates.kept(order, high))
    if least > budget.share * whole:
        raise ValueError(
            f"{budget} cannot be met: with everything gone that may go, {least / whole:.3f} of the "
            f"{budget.what} are left. Choose more layers, or a lower min_keep."
        )
    # The cost falls with every channel that goes: the least number of them that is enough.
    while low < high:
        middle = (low + high) // 2
        if cost(candidates.kept(order, middle)) <= budget.share * whole:
            high = middle
        else:
            low = middle + 1
    return candidates.kept(order, high)


class _Candidates:
    """The channels that may go, group by group, and their scores."""

    def __init__(self, graph, scores, min_keep, round_to, through_normalization):
        self.graph = graph
        self.round_to = validation.positive_int("round_to", round_to, "select")
        totals, counts = np.zeros(graph.count), np.zeros(graph.count)
        readers = {part.name: part for part in graph.consumers}
        parts = readers | {part.name: part for part in graph.producers}
        if getattr(scores, "granularity", None) == "channel":
            parts = readers
        for name, values in scores.items():
            if name not in parts:
                raise ValueError(
                    f"select: scores for '{name}', which the model has not."
                    f"{validation.did_you_mean(name, parts)}"
                )
            channels = self._channels(name, parts, readers, values)
            np.add.at(totals, channels, values)
            np.add.at(counts, channels, 1)
        self.groups = [
            group
            for group in graph.groups
            if (counts[group.channels] > 0).all()
            and (through_normalization or not group.normalized)
        ]
        if not self.groups:
            raise ValueError(
                "select: no channel can go: none of those scored is free of what must stay "
                "(outputs of the model, layers kept whole, and, unless through_normalization=True, "
                "channels under a LayerNormalization)."
            )
        self.scores = totals / np.maximum(counts, 1)
        self.min_keep = _checked_least(min_keep)
        self.count = sum(len(group) for group in self.groups)

    @staticmethod
    def _channels(name, parts, readers, values):
        """The channels that scores of a layer are for: those it makes, or those it reads."""
        for part in (parts[name], readers.get(name)):
            if part is not None and np.shape(values) == part.channels.shape:
                return part.channels
        raise ValueError(
            f"select: scores of '{name}' must be one for each of its {len(parts[name].channels)} "
            f"channels; got the shape {np.shape(values)}. Scores of single weights go to masks "
            "(kc.pruning.prune_weights)."
        )

    def order(self, scope):
        """Channels in the order in which they go; each layer keeps its best `min_keep`."""
        going, ranks = [], []
        for group in self.groups:
            stays = self._stays(group)
            free = group.channels[~np.isin(group.channels, stays)]
            free = free[np.argsort(self.scores[free], kind="stable")]
            going.append(free)
            # By layer, all groups lose their n-th share at the same time.
            ranks.append(
                self.scores[free]
                if scope == "global"
                else (np.arange(len(free)) + 0.5) / len(group)
            )
        return np.concatenate(going)[np.argsort(np.concatenate(ranks), kind="stable")]

    def _stays(self, group):
        """Channels that no target removes: of every layer of the group the best few."""
        stays = []
        for producer in group.producers:
            channels = np.unique(producer.channels[producer.channels != FIXED])
            least = self.min_keep
            least = math.ceil(least * len(channels)) if isinstance(least, float) else least
            best = np.argsort(-self.scores[channels], kind="stable")
            stays.append(channels[best[:least]])
        return np.concatenate(stays)

    def kept(self, order, number):
        """Which channels stay when the first `number` of an order go."""
        kept = np.ones(self.graph.count, bool)
        kept[order[:number]] = False
        if self.round_to > 1:
            for group in self.groups:
                self._round_up(group, kept)
        return kept

    def _round_up(self, group, kept):
        """Takes channels back until every layer of the group keeps a multiple of `round_to`."""
        before = -1
        while before != kept[group.channels].sum():
            before = kept[group.channels].sum()
            for producer in group.producers:
                channels = producer.channels
                missing = -int(kept[channels].sum()) % self.round_to
                gone = channels[~kept[channels]]
                kept[gone[np.argsort(-self.scores[gone], kind="stable")[:missing]]] = True


def _checked_least(min_keep):
    if isinstance(min_keep, float):
        return validation.number("min_keep", min_keep, 0, 1, low_open=True, owner="select")
    return validation.positive_int("min_keep", min_keep, "select")
