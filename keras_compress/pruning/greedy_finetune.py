"""`greedy_finetune`: scores, removes a few channels, trains a little, and again."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.budget import Budget
from keras_compress.convert import check_graph
from keras_compress.pruning import criteria
from keras_compress.pruning.choice import select
from keras_compress.pruning.costs import cost_of
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.pruning.surgery import ChannelGraph, cut
from keras_compress.samples import Samples, structured


def greedy_finetune(
    model,
    criterion,
    data,
    target=0.5,
    *,
    remove_per_step=1,
    updates_between=10,
    score_batches=10,
    layers=None,
    min_keep=1,
    batch_size=32,
    seed=None,
    verbose=1,
):
    """Removes channels a few at a time, with some training steps after each time.

    A round scores all channels on the next few batches, removes those with the lowest scores of
    the whole model, and trains for a few batches; rounds go on until the target is met. Every round
    makes a smaller model and compiles it anew, so that the state of the optimizer begins afresh:
    take a plain learning rate, and a larger `remove_per_step` for nets of thousands of channels.
    Train the result on for some epochs.

    Args:
        model: A compiled Sequential or functional model. It is not changed.
        criterion: An object of `kc.pruning.criteria`, or its name (`"taylor"`).
        data: Training data: `(x, y)` or an iterable of batches `(x, y)` that can be gone through
            again and again (a `tf.data.Dataset`, say). Arrays are shuffled; weights of samples are
            not used.
        target: Share of the channels to remove, in [0, 1), or a `kc.pruning.Budget`.
        remove_per_step: Channels that a round removes.
        updates_between: Batches that are trained on after each round.
        score_batches: Batches that a round's scores are from.
        layers: Names, globs, classes, layers or predicates: only channels that these layers make
            are scored; `None` for all.
        min_keep: Channels that a layer keeps at least.
        batch_size: Rows of a batch, where `data` is arrays.
        seed: Of the shuffling; `None` for a different one each time.
        verbose: 0 for no progress bar, 1 for one.

    Returns:
        A smaller model of the same layers, compiled like `model`.

    Raises:
        ValueError: if the model is not compiled, has no graph, is under a pruning mask or has
            nothing to prune, the target cannot be met, or data is missing or does not fit.

    Reference:
        Molchanov, Tyree, Karras, Aila, Kautz, "Pruning Convolutional Neural Networks for Resource
        Efficient Transfer Learning Inference", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(6, activation="relu", name="hidden"),
    ...     keras.layers.Dense(1),
    ... ])
    >>> model.compile("sgd", "mse")
    >>> x = np.random.default_rng(0).normal(size=(64, 8))
    >>> small = kc.pruning.greedy_finetune(
    ...     model, "taylor", (x, x[:, :1]), target=0.5, updates_between=2, verbose=0
    ... )
    >>> small.get_layer("hidden").units
    3
    """
    name = "greedy_finetune"
    check_graph(model, name)
    refuse_masked(model, name)
    if not model.compiled:
        raise ValueError(
            f"{name}: model '{model.name}' is not compiled, and is to be trained between the "
            "rounds. Compile it with an optimizer and a loss."
        )
    criterion = criteria.get(criterion)
    if criterion.granularity == "weight":
        raise ValueError(
            f"{name}: {type(criterion).__name__} scores single weights; those go to "
            "kc.pruning.prune_weights."
        )
    per_step = validation.positive_int("remove_per_step", remove_per_step, name)
    score_batches = validation.positive_int("score_batches", score_batches, name)
    min_keep = validation.positive_int("min_keep", min_keep, name)
    updates = validation.integer("updates_between", updates_between, 0, 10**9, name)
    shuffle = np.random.default_rng(seed)
    batches = _endless(Samples(model, data, batch_size, labels=True, owner=name, shuffle=shuffle))
    graph = ChannelGraph(model)
    goal = None
    while True:
        scores = criterion(graph, layers, [next(batches) for _ in range(score_batches)])
        if goal is None:
            goal = _Goal(graph, scores, target, min_keep, verbose)
        number = goal.next_step(graph, scores, per_step)
        model = cut(graph, select(graph, scores, number, min_keep=min_keep))
        losses = [_train(model, *next(batches)) for _ in range(updates)]
        if goal.reached(number, losses):
            return model
        graph = ChannelGraph(model)


class _Goal:
    """How many channels still go, and the progress bar.

    Args:
        graph: `ChannelGraph` of the model as it is given.
        scores: First scores.
        target: Share or `Budget`.
        min_keep: Channels that a layer keeps at least.
        verbose: Whether to show a progress bar.
    """

    def __init__(self, graph, scores, target, min_keep, verbose):
        self._budget = target if isinstance(target, Budget) else None
        self._min_keep = min_keep
        # Raises at once if the target cannot be met.
        kept = select(graph, scores, target, min_keep=min_keep)
        self._left = int(np.count_nonzero(~kept))
        if self._budget is not None:
            cost = cost_of(target.what, graph)
            self._limit = target.share * cost(np.ones(graph.count, bool))
        self._gone = 0
        self._met = False
        # Towards a budget, how many must go shows on the way.
        length = None if self._budget is not None else self._left
        self._bar = keras.utils.Progbar(length, verbose=verbose, unit_name="channel")

    def next_step(self, graph, scores, most):
        """How many channels go now: `most`, or fewer if they are enough."""
        if self._budget is None:
            number = min(most, self._left)
            self._left -= number
            self._met = self._left == 0
            return number
        cost = cost_of(self._budget.what, graph)
        for number in range(most + 1):
            kept = select(graph, scores, number, min_keep=self._min_keep)
            if cost(kept) <= self._limit:
                self._met = True
                return number
        return most

    def reached(self, number, losses):
        """Notes a round; whether it was the last one."""
        self._gone += number
        values = [("loss", float(np.mean(losses)))] if losses else []
        self._bar.update(self._gone, values, finalize=self._met)
        return self._met


def _endless(samples):
    while True:
        yield from samples


def _train(model, inputs, targets):
    return model.train_on_batch(structured(model, inputs), targets, return_dict=True)["loss"]
