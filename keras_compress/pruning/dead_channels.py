"""`without_dead_channels`: channels that nothing reads, or that say nothing, go."""

import keras
import numpy as np

from keras_compress.call_graph import Rebuilder, values_of
from keras_compress.convert import new_like
from keras_compress.pruning.constants import Constants, is_linear, linear_part
from keras_compress.pruning.surgery import ChannelGraph, cut

# Layers with a bias that a constant input can be added to.
_FOLDABLE = (
    keras.layers.Dense,
    *(getattr(keras.layers, f"Conv{rank}D") for rank in (1, 2, 3)),
    *(getattr(keras.layers, f"SeparableConv{rank}D") for rank in (1, 2)),
)


def without_dead_channels(model, branches=False):
    """A copy of a model without its dead channels.

    Args:
        model: A built Sequential or functional model.
        branches: Whether inputs of an addition that are always zero go, too.
    """
    model = Rebuilder(model).run()
    while True:
        # What is gone leaves others without readers, or without anything to read.
        graph = ChannelGraph(model)
        constants = Constants(model, graph.graph)
        if branches and (additions := _additions_of_zero(graph.graph, constants)):
            model = _Additions(model, additions).run()
            continue
        dead = _DeadChannels(graph, constants)
        if bare := dead.without_bias():
            model = Rebuilder(model, {id(layer): _with_bias(layer) for layer in bare}).run()
            continue
        changed = dead.fold()
        if dead.gone.any():
            model = cut(graph, ~dead.gone)
        elif not changed:
            return model


class _DeadChannels:
    """Which channels of a `ChannelGraph` are dead.

    A channel is if every layer that sums over it has only zeros for it, or if it is constant where
    it is read: zero, or something that can go into the reader's bias.

    Attributes:
        gone: Boolean array over channel numbers: those to cut. Of every layer one stays.
    """

    def __init__(self, graph, constants):
        self._graph, self._constants = graph, constants
        # Id of a layer -> its call, the constants at its input's positions, their channels.
        self._folds = {}
        self._blind = np.zeros(graph.count, bool)
        self._dead = np.zeros(graph.count, bool)
        dead = ~np.any([self._needed(call) for call in graph.graph.calls], 0)
        for group in graph.groups:
            if not group.normalized:
                self._dead[group.channels] = dead[group.channels]
        for producer in graph.producers:
            if producer.axis is None:
                # Heads are read inside of their layer.
                self._dead[producer.channels] = False
        self.gone = self._dead.copy()
        for producer in graph.producers:
            if self.gone[producer.channels].all():
                self.gone[producer.channels[0]] = False

    def _needed(self, call):
        """Boolean array over channels: which of them a call cannot do without."""
        needed, summed, used, passed_on = (np.zeros(self._graph.count, bool) for _ in range(4))
        for variable, place, ids in self._reads(call.operation):
            kernel = keras.ops.convert_to_numpy(variable)
            summed[ids] = True
            used[ids[np.moveaxis(kernel, place, 0).reshape(len(ids), -1).any(1)]] = True
        for value in call.outputs:
            for ids in self._graph.axes(value):
                if ids is not None:
                    passed_on[ids] = True
        blind = ~summed & ~passed_on
        used |= blind
        for value in call.inputs:
            for axis, ids in enumerate(self._graph.axes(value)):
                if ids is not None:
                    stays = used[ids] & ~self._removable(call, value, axis, used[ids])
                    needed[ids[stays]] = True
                    self._blind[ids[blind[ids]]] = True
        return needed

    def _reads(self, layer):
        """Kernels of a layer, the axis that counts its inputs, and their channels."""
        for consumer in self._graph.consumers:
            if consumer.layer is layer:
                yield consumer.variable, consumer.place, consumer.channels
        if getattr(layer, "groups", 1) > 1 and layer.kernel.shape[-2] > 1:
            place = len(layer.kernel.shape) - 2
            ids = self._graph.positions(layer.kernel).get(place)
            if ids is not None:
                yield layer.kernel, place, ids

    def _removable(self, call, value, axis, used):
        """Which positions of an input are constants that the call can do without."""
        known = _by_position(self._constants.known(value), axis)
        values = _by_position(self._constants.values(value), axis)
        uniform = known.all(1) & (values == values[:, :1]).all(1)
        zero = uniform & (values[:, 0] == 0)
        layer = call.operation
        if not _takes_constants(layer) or not is_linear(layer):
            return zero
        here = np.where(uniform & used, values[:, 0], 0)
        if id(layer) not in self._folds:
            self._folds[id(layer)] = call, here, self._graph.axes(value)[axis]
        # A shared layer has one bias for all its calls.
        return uniform & (here == self._folds[id(layer)][1])

    def _constants_read(self):
        """Pairs of a call and the constants at its input's positions, if any is not 0."""
        for call, values, ids in self._folds.values():
            values = np.where(self._dead[ids], values, 0)
            if values.any():
                yield call, values

    def without_bias(self):
        """Layers that must get a bias for a constant to go into."""
        return [call.operation for call, _ in self._constants_read() if call.operation.bias is None]

    def fold(self):
        """Adds constants to the biases of what reads them, and zeroes the weights that read them.

        Returns:
            Whether a weight changed.
        """
        for call, values in self._constants_read():
            layer = call.operation
            (value,) = call.inputs
            first = getattr(layer, "data_format", None) == "channels_first"
            rank = len(value.shape)
            shape = [1] * rank
            shape[1 if first else -1] = len(values)
            size = [1] * rank if not hasattr(layer, "kernel_size") else _reach(layer, first)
            inputs = np.broadcast_to(values.reshape(shape), np.maximum(shape, size))
            given = keras.ops.convert_to_numpy(linear_part(layer)(inputs.astype("float32")))
            bias = keras.ops.convert_to_numpy(layer.bias)
            layer.bias.assign(bias + given.reshape(-1).astype(bias.dtype))
        # A dead channel that stays, since a layer needs one, is not to keep others alive.
        empty = self._dead & ~self._blind
        places = [(p.variable, p.place, p.channels) for p in self._graph.producers]
        for call in self._graph.graph.calls:
            places += self._reads(call.operation)
        changed = [_zero(*place, empty) for place in places]
        return any(changed)


def _zero(variable, place, ids, channels):
    """Zeroes a kernel's slices for some channels; whether that changes it."""
    kernel = np.moveaxis(keras.ops.convert_to_numpy(variable).copy(), place, 0)
    changes = kernel[channels[ids]].any()
    if changes:
        kernel[channels[ids]] = 0
        variable.assign(np.moveaxis(kernel, 0, place))
    return changes


def _by_position(array, axis):
    """An array as a matrix (positions on an axis, everything else)."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _takes_constants(layer):
    """Whether a constant input adds the same to each output position, up to a bias."""
    if type(layer) not in _FOLDABLE or getattr(layer, "groups", 1) > 1:
        return False
    # Padded zeros are another constant.
    sizes = getattr(layer, "kernel_size", ())
    return all(size == 1 for size in sizes) or layer.padding == "valid"


def _reach(layer, channels_first):
    """Sizes of an input of which a convolution gives one position, as a full shape."""
    rates = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    sizes = [rate * (size - 1) + 1 for size, rate in rates]
    return [1, 1, *sizes] if channels_first else [1, *sizes, 1]


def _with_bias(layer):
    new = new_like(layer, {**layer.get_config(), "use_bias": True})
    arrays = values_of(layer)
    outputs = layer.units if isinstance(layer, keras.layers.Dense) else layer.filters
    return new, [*arrays, np.zeros(outputs, arrays[0].dtype)]


def _additions_of_zero(graph, constants):
    """Dict from the id of an addition to the positions of its inputs that are always zero."""
    found, calls = {}, {}
    for call in graph.calls:
        operation = call.operation
        if type(operation).__name__ != "Add" or any(
            value.shape != call.output.shape for value in call.inputs
        ):
            continue
        if len(call.inputs) < 2 or len(keras.tree.flatten((call.args, call.kwargs))) != len(
            call.inputs
        ):
            continue
        zero = {
            place
            for place, value in enumerate(call.inputs)
            if constants.known(value).all() and not constants.values(value).any()
        }
        # At least one stays.
        zero.discard(0 if len(zero) == len(call.inputs) else None)
        calls.setdefault(id(operation), []).append(zero)
    for key, sets in calls.items():
        common = set.intersection(*sets)
        if common:
            found[key] = common
    return found


class _Additions(Rebuilder):
    """Leaves inputs of additions out; what gave them is then read by nothing.

    Args:
        model: The model.
        gone: Dict from the id of an addition to the positions of its inputs to leave out.
    """

    def __init__(self, model, gone):
        super().__init__(model)
        self._gone = gone

    def call(self, operation, new, args, kwargs):
        gone = self._gone.get(id(operation))
        if gone is None:
            return super().call(operation, new, args, kwargs)
        tensors = [
            tensor
            for place, tensor in enumerate(keras.tree.flatten((args, kwargs)))
            if place not in gone
        ]
        if len(tensors) == 1:
            return tensors[0]
        return new(tensors)
