"""`Criterion`: how much each weight, filter or input channel matters."""

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.pruning.criteria.observer import Observer, finite, sample_loss
from keras_compress.pruning.surgery import ChannelGraph
from keras_compress.samples import Samples

NORMALIZE = ("none", "l2", "max", "mean")


class Scores(dict):
    """A dict from layer name to scores that knows what they are scores of.

    A layer may read as many channels as it makes, where the shape does not tell them apart.

    Attributes:
        granularity: As of the `Criterion`.
    """

    def __init__(self, scores, granularity):
        super().__init__(scores)
        self.granularity = granularity


class Criterion:
    """Scores of a model's filters: the higher, the more it would be missed.

    Called with a model, a criterion gives a score to each channel that a layer makes
    (`granularity="filter"`), that a layer reads (`"channel"`), or to each weight of a kernel
    (`"weight"`). Choosing by them (`kc.pruning.select`) and cutting (`kc.pruning.prune_channels`)
    are other people's work. A subclass writes `score`.

    Args:
        normalize: What the scores of a layer are divided by, so that those of different layers can
            be compared: `"none"`, `"l2"` (their norm), `"max"` or `"mean"`.

    Attributes:
        granularity: `"filter"`, `"channel"` or `"weight"`.
        needs: `"nothing"`, `"data"` or `"labels"`.
    """

    granularity = "filter"
    needs = "nothing"

    def __init__(self, normalize="none"):
        self.normalize = validation.one_of("normalize", normalize, NORMALIZE, self)

    def __call__(self, model, layers=None, data=None, loss=None, batch_size=64):
        """Scores layers of a model.

        Args:
            model: A built Sequential or functional model, or its `ChannelGraph`. Not changed.
            layers: Names, globs, classes, layers or predicates that choose layers; `None` for all.
            data: Where the criterion needs data: an array, `(x, y)` or an iterable of batches.
            loss: For criteria that look at gradients: a Keras loss or its name; `None` for the
                compiled one.
            batch_size: Rows at a time, where `data` is arrays.

        Returns:
            `Scores`, a dict from layer name to numpy array: of the kernel's shape
            (`granularity="weight"`), `(outputs,)` (`"filter"`) or `(inputs,)` (`"channel"`).

        Raises:
            ValueError: if the model has no graph, `layers` matches nothing, or data that is needed
                is missing, of the wrong shape or not finite.
        """
        graph = self.open(model)
        samples = None
        if self.needs != "nothing":
            samples = Samples(graph.model, data, batch_size, self.needs == "labels", self)
        parts = self.parts(graph, layers)
        scores = self.score(graph, parts, samples, loss)
        scores = {
            part.name: self._normalized(finite(np.asarray(score), f"a score of {part.name}", self))
            for part, score in zip(parts, scores, strict=True)
        }
        return Scores(scores, self.granularity)

    def open(self, model):
        """What is looked at of a model: its `ChannelGraph`, if it is not one already."""
        return model if isinstance(model, ChannelGraph) else ChannelGraph(model)

    def parts(self, graph, layers=None):
        """What is scored: the `Producer`s or `Consumer`s of the graph whose layers are chosen."""
        parts = graph.consumers if self.granularity == "channel" else graph.producers
        if layers is None:
            return list(parts)
        keys = [layers] if isinstance(layers, str) or callable(layers) else list(layers)
        chosen = matching.resolve(keys, dict.fromkeys(part.layer for part in parts))
        chosen = {layer for layer, _ in chosen}
        return [part for part in parts if part.layer in chosen]

    def score(self, graph, parts, samples, loss):
        """Scores of the parts.

        Args:
            graph: The `ChannelGraph`.
            parts: List of `Producer` or `Consumer`, as `parts` gave it.
            samples: `Samples`, or `None` if the criterion needs none.
            loss: As `__call__` got it.

        Returns:
            List of arrays.
        """
        raise NotImplementedError

    def _normalized(self, scores):
        size = {
            "none": lambda: 1.0,
            "l2": lambda: np.sqrt(np.square(scores).sum()),
            "max": lambda: np.abs(scores).max(initial=0.0),
            "mean": lambda: np.abs(scores).mean() if scores.size else 0.0,
        }[self.normalize]()
        return scores / size if size > 0 else scores


class KernelCriterion(Criterion):
    """Base of criteria that need nothing but the kernel; a subclass writes `of_kernel`."""

    def score(self, graph, parts, samples, loss):
        return self._scores(graph, parts, np.ones(graph.count, bool))

    def remaining(self, graph, layers=None):
        """Scores that know what is gone already, for the greedy choice of `select`.

        Args:
            graph: `ChannelGraph` of the model.
            layers: As of `__call__`.

        Returns:
            Function from a boolean array over the graph's channel numbers to scores: weights of
            input channels that are not kept do not count.
        """
        parts = self.parts(graph, layers)

        def scores(kept):
            found = self._scores(graph, parts, kept)
            return {p.name: self._normalized(s) for p, s in zip(parts, found, strict=True)}

        return scores

    def _scores(self, graph, parts, kept):
        scores = []
        for part in parts:
            kernel = keras.ops.convert_to_numpy(part.variable)
            for axis, channels in graph.positions(part.variable).items():
                if axis != part.place:
                    kernel = np.compress(kept[channels], kernel, axis)
            scores.append(self.of_kernel(_rows(kernel, part.place)))
        return scores

    def of_kernel(self, rows):
        """Scores from a kernel as an array `(channels, weights of each)`."""
        raise NotImplementedError


class ActivationCriterion(Criterion):
    """Base of criteria that look at feature maps, after batch normalization and activation.

    One pass over the data serves all layers. A subclass writes `update` and `result`, and sets
    `with_gradients = True` if it wants the gradients of the loss too.
    """

    needs = "data"
    with_gradients = False

    def parts(self, graph, layers=None):
        # The heads of an attention layer have no tensor in the graph to look at.
        return [part for part in super().parts(graph, layers) if part.axis is not None]

    def score(self, graph, parts, samples, loss):
        observer = Observer(graph.graph, [self.value(graph, part) for part in parts])
        states = [None] * len(parts)
        if self.with_gradients:
            loss = sample_loss(graph.model, loss, self)
        for inputs, targets in samples:
            if self.with_gradients:
                batch = zip(*observer.gradients(inputs, targets, loss), strict=True)
            else:
                batch = ((tensor,) for tensor in observer.activations(inputs))
            for index, (part, tensors) in enumerate(zip(parts, batch, strict=True)):
                maps = [_maps(tensor, part.axis) for tensor in tensors]
                states[index] = self.update(states[index], *maps, targets=targets)
        return [self.result(state) for state in states]

    def value(self, graph, part):
        """The `Value` of the graph that is looked at for a part."""
        return graph.activation(part)

    def update(self, state, maps, gradients=None, targets=None):
        """Takes in a batch.

        Args:
            state: What the last call gave; `None` at first.
            maps: Array `(samples, positions, channels)`.
            gradients: Likewise, if `with_gradients`.
            targets: Array of the batch's targets, or `None`.

        Returns:
            The new state.
        """
        raise NotImplementedError

    def result(self, state):
        """Scores `(channels,)` from the last state."""
        raise NotImplementedError


def _rows(kernel, place):
    return np.moveaxis(kernel.astype("float32"), place, 0).reshape(kernel.shape[place], -1)


def _maps(tensor, axis):
    moved = np.moveaxis(tensor, axis, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])
