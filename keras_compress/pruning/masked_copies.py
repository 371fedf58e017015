"""`MaskedCopies`: how well a model does under many masks, tried one after the other."""

import dataclasses

import keras
import numpy as np

from keras_compress import validation
from keras_compress.convert import check_graph, rebuild
from keras_compress.pruning.masks import drop_count
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.pruning.surgery import FIXED, ChannelGraph, cut

GRANULARITIES = ("filter", "kernel")
_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)


@dataclasses.dataclass(eq=False)
class FoundMask:
    """What a search over masks gives.

    Attributes:
        model: The model under the best mask, compiled like the one that was searched: a smaller one
            for `"filter"`, one with zeros for `"kernel"`.
        masks: Dict from a layer (for `"filter"`: the layers whose channels are tied) to a boolean
            array over its channels, or over `(inputs, outputs)` of its kernel: which stay.
        fitness: The metric of the best mask; a loss or an error with its sign turned.
        best: List of the best fitness after each trial or generation.
    """

    model: keras.Model
    masks: dict
    fitness: float
    best: list


class MaskedCopies:
    """Evaluates masks of a model on one copy of it: weights are assigned, nothing is traced again.

    A mask is a boolean array over *units*: channels (`"filter"`), or the 2-D slices of convolution
    kernels, one for each input and output channel (`"kernel"`). In each group of units that are
    alternatives to one another the same share is pruned.

    Args:
        model: A built and compiled Sequential or functional model. It is not changed.
        data: What `evaluate` takes: `(x, y)` or a dataset of batches.
        granularity: `"filter"` or `"kernel"`.
        ratio: Share of the units of each group to prune, in [0, 1).
        monitor: Name of the metric that counts; `None`: `"accuracy"` if the model has it, else
            `"loss"`. Of one whose name ends in "loss" or "error", less is better.
        batch_size: Rows of arrays at a time.
        owner: Object or name that error messages begin with.

    Raises:
        ValueError: if the model has no graph, is not compiled or has no units, or `monitor` is not
            logged.

    Attributes:
        groups: Dict from a name to the indices of its units.
        count: Number of units.
        graph: For `"filter"`, the model's `ChannelGraph`; the units are its channel numbers.
        monitor: Name of the metric.
    """

    def __init__(self, model, data, granularity, ratio, monitor=None, batch_size=256, owner=None):
        prefix = validation.prefix(owner)
        check_graph(model, prefix.removesuffix(": "))
        refuse_masked(model, prefix.removesuffix(": "))
        if not model.compiled:
            raise ValueError(
                f"{prefix}model '{model.name}' is not compiled; masks are judged by its own loss "
                "and metrics: call model.compile(optimizer, loss, metrics=['accuracy']) first."
            )
        validation.one_of("granularity", granularity, GRANULARITIES, owner)
        self._model, self._filters = model, granularity == "filter"
        self._find_units(prefix)
        self._drop = {name: drop_count(len(u), ratio) for name, u in self.groups.items()}
        self._copy = rebuild(model, {})
        self._copy.compile_from_config(model.get_compile_config())
        places = {id(variable): i for i, variable in enumerate(model.weights)}
        self._weights = [
            (self._copy.weights[places[id(variable)]], keras.ops.convert_to_numpy(variable), axes)
            for variable, axes in self._axes
        ]
        self._data = keras.utils.unpack_x_y_sample_weight(data)
        self._batch_size = batch_size
        self._known = {}
        self.monitor = self._checked(monitor, prefix)

    def _find_units(self, prefix):
        self._axes, self.groups = [], {}
        if self._filters:
            self.graph = graph = ChannelGraph(self._model)
            self.count = graph.count
            groups = [group for group in graph.groups if not group.normalized]
            self.groups = {group.name: group.channels for group in groups}
            self._producers = {
                group.name: [p.channels[p.channels != FIXED] for p in group.producers]
                for group in groups
            }
            for variable in self._model.weights:
                axes = graph.positions(variable)
                if axes:
                    self._axes.append((variable, axes))
        else:
            self.count = 0
            for layer in dict.fromkeys(self._model._flatten_layers(include_self=False)):
                if isinstance(layer, _CONVOLUTIONS):
                    units = np.arange(
                        self.count, self.count + int(np.prod(layer.kernel.shape[-2:]))
                    )
                    self.count += len(units)
                    self.groups[layer.name] = units
                    self._axes.append((layer.kernel, units.reshape(layer.kernel.shape[-2:])))
            self._producers = {name: [] for name in self.groups}
        if not self.groups:
            what = "channels that may go" if self._filters else "convolution"
            raise ValueError(f"{prefix}model '{self._model.name}' has no {what}.")

    def _checked(self, monitor, prefix):
        logs = self._evaluate()
        if monitor is None:
            names = [name for name in ("accuracy", "acc") if name in logs]
            monitor = names[0] if names else "loss"
        if monitor not in logs:
            raise ValueError(
                f"{prefix}`monitor` must be one of {', '.join(logs)}, which the model logs; got "
                f"monitor={monitor!r}."
            )
        return monitor

    def draw(self, rng):
        """A random mask of the asked-for ratio.

        Args:
            rng: numpy `Generator`.

        Returns:
            Boolean array over the units.
        """
        mask = np.ones(self.count, bool)
        for name, units in self.groups.items():
            stays = []
            for one in self._producers[name]:
                if not np.isin(one, stays).any():
                    stays.append(rng.choice(one))
            free = np.setdiff1d(units, stays)
            drop = min(self._drop[name], len(free))
            mask[rng.choice(free, drop, replace=False)] = False
        return mask

    def perturb(self, mask, rate, rng):
        """A mask of the same ratio, in which some pruned units and as many kept ones are swapped.

        Args:
            mask: Boolean array over the units.
            rate: Probability of each pruned unit to come back.
            rng: numpy `Generator`.
        """
        mask = mask.copy()
        for name, units in self.groups.items():
            gone = units[~mask[units]]
            back = gone[rng.random(len(gone)) < rate]
            for unit in back:
                # Not the last unit of any layer.
                kept = units[mask[units]]
                lone = [one[mask[one]] for one in self._producers[name] if mask[one].sum() == 1]
                kept = np.setdiff1d(kept, np.concatenate(lone)) if lone else kept
                if len(kept):
                    mask[rng.choice(kept)] = False
                    mask[unit] = True
        return mask

    def fitness(self, mask):
        """The metric under a mask, with its sign turned if less of it is better."""
        value = self.metric(mask)
        return -value if self.monitor.endswith(("loss", "error")) else value

    def metric(self, mask):
        """The metric of the model under a mask."""
        key = np.packbits(mask).tobytes()
        if key not in self._known:
            for variable, array, axes in self._weights:
                variable.assign(self._masked(array, axes, mask))
            self._known[key] = float(self._evaluate()[self.monitor])
        return self._known[key]

    def _evaluate(self):
        x, y, weights = self._data
        return self._copy.evaluate(
            x,
            y,
            sample_weight=weights,
            batch_size=self._batch_size if y is not None else None,
            verbose=0,
            return_dict=True,
        )

    def _masked(self, array, axes, mask):
        if not self._filters:
            return np.where(mask[axes], array, 0)
        for axis, channels in axes.items():
            shape = [1] * array.ndim
            shape[axis] = -1
            array = np.where(mask[channels].reshape(shape), array, 0)
        return array

    def found(self, mask, best):
        """The `FoundMask` of a mask.

        Args:
            mask: Boolean array over the units.
            best: See `FoundMask`.
        """
        if self._filters:
            masks = {name: mask[units] for name, units in self.groups.items()}
            return FoundMask(cut(self.graph, mask), masks, self.fitness(mask), best)
        model = rebuild(self._model, {})
        places = {id(variable): i for i, variable in enumerate(self._model.weights)}
        masks = {}
        for name, (variable, units) in zip(self.groups, self._axes, strict=True):
            array = keras.ops.convert_to_numpy(variable)
            model.weights[places[id(variable)]].assign(self._masked(array, units, mask))
            masks[name] = mask[units]
        model.compile_from_config(self._model.get_compile_config())
        return FoundMask(model, masks, self.fitness(mask), best)
