"""`ChannelPruning`: whole channels go while `fit` runs, and are cut out afterwards."""

import numpy as np

from keras_compress import validation
from keras_compress.budget import Budget
from keras_compress.callbacks.scheduled_masks import ScheduledMasks, Target
from keras_compress.convert import check_graph
from keras_compress.pruning import criteria, schedules
from keras_compress.pruning.choice import SCOPES, select
from keras_compress.pruning.prunable import maskable_weights, trained_model
from keras_compress.pruning.pruning_mask import PruningMask
from keras_compress.pruning.strip import strip
from keras_compress.pruning.surgery import FIXED, ChannelGraph, cut


class ChannelPruning(ScheduledMasks):
    """Prunes filters and units during `fit`, more and more of them; `finalize()` cuts them out.

    When the schedule says so, the criterion scores the channels of the model as it is, and those
    of lowest score are masked: in every weight that makes, passes on or reads them (kernels,
    biases, batch normalization), with all channels that they are tied to by residual additions and
    the like. A channel that is gone stays gone. Masks are held inside the compiled training step,
    whatever the optimizer; they and the schedule's state are part of the model: `.keras` files and
    `BackupAndRestore` carry them.

    The share of all channels of the model (those of its outputs aside) that are gone is logged as
    `sparsity` at the end of each epoch. Do not prune single weights at the same time.

    Args:
        criterion: An object of `kc.pruning.criteria`, or its name.
        target: Share of the channels to remove, in [0, 1), or a `kc.pruning.Budget`.
        schedule: Object of `kc.pruning` (`PolynomialDecay` and so on), a tfmot schedule, or `None`:
            all at the first step. What counts is the share of its final sparsity that it has
            reached: with `PolynomialDecay(0.0, 0.5, ...)`, at a sparsity of 0.25, half of the
            channels have gone that `target` takes (of a budget, half of the cost). Each due step
            scores a copy of the model: choose `frequency` accordingly.
        data: For criteria that look at data; see `kc.pruning.prune_channels`.
        layers: Likewise: channels of these layers only.
        scope: See `kc.pruning.select`.
        min_keep: See `kc.pruning.select`.
        round_to: See `kc.pruning.select`.
        loss: For criteria that look at gradients; `None` for the compiled loss.
        batch_size: Rows of `data` at a time.

    Raises:
        ValueError: for arguments that do not make sense; at the start of `fit`, for a model that
            has no graph, no weights yet, or is under another pruning mask; during it, if the target
            cannot be met.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((16,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)
    ... ])
    >>> model.compile("adam", "mse")
    >>> pruning = kc.callbacks.ChannelPruning(
    ...     "l1", target=0.5, schedule=kc.pruning.PolynomialDecay(0.0, 0.5, 0, 8, frequency=4)
    ... )
    >>> x, y = np.random.rand(64, 16), np.random.rand(64, 1)
    >>> history = model.fit(x, y, batch_size=16, epochs=3, callbacks=[pruning], verbose=0)
    >>> small = pruning.finalize()
    >>> small.layers[0].units, np.allclose(
    ...     small.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    ... )
    (4, True)
    """

    def __init__(
        self,
        criterion="l1",
        target=0.5,
        schedule=None,
        data=None,
        layers=None,
        scope="global",
        min_keep=1,
        round_to=1,
        loss=None,
        batch_size=64,
    ):
        super().__init__()
        self.criterion = criteria.get(criterion)
        if self.criterion.granularity == "weight":
            raise ValueError(
                f"ChannelPruning: {type(self.criterion).__name__} scores single weights; those are "
                "for kc.pruning.prune_weights."
            )
        if self.criterion.needs != "nothing" and data is None:
            raise ValueError(
                f"ChannelPruning: {type(self.criterion).__name__} looks at data; give data=(x, y)."
            )
        if not isinstance(target, Budget):
            target = validation.number("target", target, 0, 1, high_open=True, owner=self)
        self.target = target
        self.schedule = schedules.get(schedules.OneShot(0.5) if schedule is None else schedule)
        if not self.schedule.final_sparsity:
            raise ValueError(
                "ChannelPruning: `schedule` must say with what sparsity above 0 it ends; got "
                f"schedule={schedule!r}."
            )
        self.data = data
        self.layers = layers
        self.scope_of_choice = validation.one_of("scope", scope, SCOPES, self)
        self.min_keep = min_keep
        self.round_to = validation.positive_int("round_to", round_to, self)
        self.loss = loss
        self.batch_size = validation.positive_int("batch_size", batch_size, self)

    def set_model(self, model):
        super().set_model(model)
        trained = trained_model(model, self)
        check_graph(trained, "ChannelPruning")
        self._graph = ChannelGraph(trained)
        weights = _masked_weights(self._graph)
        # Raises while the model is as it was.
        self._kept = _kept_channels(self._graph, weights)
        self.install([Target(weight, self.schedule) for weight in weights])

    def started(self):
        self._kept = _kept_channels(self._graph, [target.kernel for target in self.targets])

    def prune(self, targets, sparsity):
        reached = min(sparsity / self.schedule.final_sparsity, 1.0)
        if not reached:
            return
        if isinstance(self.target, Budget):
            target = Budget(**{self.target.what: 1 - reached * (1 - self.target.share)})
        else:
            target = reached * self.target
        # A copy without masks: costs and criteria are those of the model that will be.
        graph = ChannelGraph(strip(self._graph.model))
        scores = self.criterion(graph, self.layers, self.data, self.loss, self.batch_size)
        scores = self._may_go(graph, scores)
        kept = select(graph, scores, target, self.scope_of_choice, self.min_keep, self.round_to)
        self._kept &= kept
        for one in self.targets:
            one.set_mask(_mask(self._graph, one.kernel.variable, self._kept))
            one.apply_mask()

    def _may_go(self, graph, scores):
        """Scores with what is gone already first; without channels that cannot be masked."""
        masked = {id(target.kernel.variable) for target in self.targets}
        held = np.zeros(graph.count, bool)
        for variable in self._graph.model.trainable_variables:
            if id(variable) not in masked:
                for channels in self._graph.positions(variable).values():
                    held[channels[channels != FIXED]] = True
        result = {}
        read = self.criterion.granularity == "channel"
        for part in graph.consumers if read else graph.producers:
            if part.name in scores and not held[part.channels].any():
                gone = ~self._kept[part.channels]
                result[part.name] = np.where(gone, -np.inf, scores[part.name])
        return result

    def finalize(self, model=None):
        """Returns the model without the channels that are gone; see `kc.pruning.remove_channels`.

        Args:
            model: A model that this callback has masked, from a file for example; `None` for the
                one that was fitted last.

        Returns:
            A smaller model of the same layers and outputs, compiled like `model`.
        """
        if model is None and not self.targets:
            raise ValueError("ChannelPruning: finalize() comes after a fit() with this callback.")
        model = trained_model(self.model if model is None else model, self)
        check_graph(model, "ChannelPruning")
        graph = ChannelGraph(model)
        kept = _kept_channels(graph, _masked_weights(graph))
        return cut(ChannelGraph(strip(model)), kept)

    @property
    def layer_sparsity(self):
        """Dict from the name of each layer to the share of its channels that is gone."""
        return {
            producer.name: 1 - float(self._kept[producer.channels].mean())
            for producer in self._graph.producers
        }

    @property
    def sparsity(self):
        """Share of all channels that are gone."""
        free = np.concatenate([group.channels for group in self._graph.groups] or [[]])
        return 1 - float(self._kept[free.astype(int)].mean()) if free.size else 0.0


def _masked_weights(graph):
    """`PrunableKernel`s of the weights with channels that may go."""
    found = {}
    for call in graph.graph.calls:
        for layer in (call.operation, getattr(call.operation, "cell", None)):
            for weight in maskable_weights(layer):
                positions = graph.positions(weight.variable)
                if any((channels != FIXED).any() for channels in positions.values()):
                    found.setdefault(id(weight.variable), weight)
    return list(found.values())


def _mask(graph, variable, kept):
    """Mask of a weight in which the channels that are not kept are false."""
    mask = np.ones(variable.shape, bool)
    for axis, channels in graph.positions(variable).items():
        shape = [1] * mask.ndim
        shape[axis] = -1
        mask &= kept[channels].reshape(shape)
    return mask


def _kept_channels(graph, weights):
    """Which channels the masks on weights keep."""
    masks = [getattr(weight.layer, weight.constraint_attribute) for weight in weights]
    pairs = [(w, m) for w, m in zip(weights, masks, strict=True) if isinstance(m, PruningMask)]
    kept = np.ones(graph.count, bool)
    for weight, mask in pairs:
        array = mask.read_mask()
        for axis, channels in graph.positions(weight.variable).items():
            others = tuple(i for i in range(array.ndim) if i != axis)
            kept[channels[~array.any(axis=others)]] = False
    kept[FIXED] = True
    for weight, mask in pairs:
        if (_mask(graph, weight.variable, kept) != mask.read_mask()).any():
            raise ValueError(
                f"ChannelPruning: '{weight.name}' is under a mask of single weights, of another "
                "callback. Take it off first: kc.pruning.strip(model)."
            )
    return kept
