"""Removing and copying channels: another ordinary Keras model."""

import functools

import keras
import numpy as np

from keras_compress import validation
from keras_compress.call_graph import Rebuilder
from keras_compress.convert import new_like
from keras_compress.layers.maxout_conv2d import MaxoutConv2D
from keras_compress.layers.maxout_dense import MaxoutDense
from keras_compress.pruning.surgery.channel_graph import FIXED, ChannelGraph
from keras_compress.pruning.surgery.channel_rules import registered_sizes


def remove_channels(model, keep):
    """Returns a copy of a model without some channels of chosen layers.

    A channel that is tied to others (by a residual addition, a gate, a shared layer) goes together
    with them: of each such group of channels, one layer says what stays.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        keep: Dict from the name of a layer to the indices of its output channels (filters, units,
            heads under `"name/heads"`) that stay.

    Returns:
        A smaller model of the same layers, names and nesting, compiled like `model` if that is
        compiled.

    Raises:
        ValueError: if a layer is not there or makes no channels, an index is out of range, nothing
            would stay, two layers of a group disagree, or a channel that must stay would go.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, name="conv"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> small = kc.pruning.remove_channels(model, {"conv": [0, 2]})
    >>> small.get_layer("conv").filters, model.count_params(), small.count_params()
    (2, 1490, 750)
    """
    graph = ChannelGraph(model)
    return cut(graph, _kept(graph, keep))


def _kept(graph, keep):
    """Boolean array over channel numbers for the `keep` of `remove_channels`."""
    producers = {producer.name: producer for producer in graph.producers}
    kept = np.ones(graph.count, bool)
    said = {}
    for name, indices in keep.items():
        if name not in producers:
            raise ValueError(
                f"remove_channels: the model has no layer '{name}' that makes channels."
                f"{validation.did_you_mean(name, producers)} It has: {', '.join(producers)}."
            )
        channels = producers[name].channels
        indices = np.unique(np.asarray(indices, int))
        if not len(indices) or indices[0] < 0 or indices[-1] >= len(channels):
            raise ValueError(
                f"remove_channels: keep['{name}'] must be indices from 0 to {len(channels) - 1}, "
                f"at least one; got {keep[name]!r}."
            )
        stays = np.zeros(len(channels), bool)
        stays[indices] = True
        if not stays[channels == FIXED].all():
            raise ValueError(
                f"remove_channels: channels of '{name}' that must stay would go: they are outputs "
                "of the model, or a layer that is kept whole reads them."
            )
        for channel, stay in zip(channels, stays, strict=True):
            if said.setdefault(channel, (stay, name))[0] != stay:
                raise ValueError(
                    f"remove_channels: '{name}' and '{said[channel][1]}' share channels that must "
                    "stay or go together, and disagree about them; give only one of the two."
                )
            kept[channel] = stay
    return kept


def cut(graph, kept):
    """The model of a `ChannelGraph` without the channels that are not kept.

    Args:
        graph: The `ChannelGraph`.
        kept: Boolean array over channel numbers.
    """
    return Cutter(graph, kept).run()


class Cutter(Rebuilder):
    """Makes a model anew with each channel taken as often as said.

    Copies follow what they are copies of, in every tensor alike. What reads them has its weights
    divided by their number, so that the outputs of copiable channels stay as they are.

    Args:
        graph: The `ChannelGraph`.
        counts: Array over channel numbers: how often each is taken, as booleans or integers.
    """

    def __init__(self, graph, counts):
        super().__init__(graph.model)
        self.graph = graph
        self.counts = np.asarray(counts).astype(int)

    def remake(self, operation):
        if not isinstance(operation, keras.layers.Layer):
            return self._reshaped(operation), ()
        arrays = [self.taken(variable) for variable in operation.variables]
        shapes = {
            id(variable): array.shape
            for variable, array in zip(operation.variables, arrays, strict=True)
        }
        return new_like(operation, self._config(operation, shapes)), arrays

    def taken(self, variable):
        """Array of a layer's variable in the new model."""
        array = keras.ops.convert_to_numpy(variable)
        summed = self.graph.sums(variable)
        for axis, channels in self.graph.positions(variable).items():
            order = self.order(channels)
            array = np.take(array, order, axis)
            if axis in summed:
                along = [1] * array.ndim
                along[axis] = -1
                array = array / self.counts[channels[order]].reshape(along).astype(array.dtype)
        return array

    def order(self, channels):
        """Old position of each new one on an axis.

        Args:
            channels: Numbers of the channels on the axis.
        """
        alone = np.ones(len(channels), bool)
        alone[1:] = (channels[1:] != channels[:-1]) | ~self.graph.blocks[channels[1:]]
        starts = np.flatnonzero(alone)
        lengths = np.diff(starts, append=len(channels))
        totals = lengths * self.counts[channels[starts]]
        places = np.arange(totals.sum()) - np.repeat(np.cumsum(totals) - totals, totals)
        return np.repeat(starts, totals) + places % np.repeat(lengths, totals)

    def _config(self, layer, shapes):
        config = layer.get_config()
        config.update(_sizes(layer, lambda variable: shapes[id(variable)]))
        if isinstance(layer, keras.layers.Reshape):
            config["target_shape"] = self._target(layer, layer.target_shape)
        return config

    def _reshaped(self, operation):
        """A copy of a plain operation; a reshape asks for the new sizes."""
        if id(operation) not in self.graph.reshaped:
            return new_like(operation, operation.get_config())
        target = self._target(operation, operation.newshape[1:])
        return type(operation)((operation.newshape[0], *target), name=operation.name)

    def _target(self, operation, target):
        axes = self.graph.reshaped[id(operation)][1:]
        return tuple(
            size if ids is None or size == -1 else int(self.counts[ids].sum())
            for size, ids in zip(target, axes, strict=True)
        )


@functools.singledispatch
def _sizes(layer, shape):
    """Arguments of a layer that follow from the new shapes of its variables.

    Args:
        layer: The layer as it was.
        shape: Function from a variable of it to its new shape.
    """
    if type(layer).__name__ == "LayerScale":
        # Of keras.applications.convnext, which has no public name for it.
        return {"projection_dim": shape(layer.gamma)[0]}
    sizes = registered_sizes(layer)
    return sizes(layer, shape) if sizes else {}


@_sizes.register(keras.layers.Dense)
def _(layer, shape):
    return {"units": shape(layer.kernel)[1]}


@_sizes.register(keras.layers.Conv1D)
@_sizes.register(keras.layers.Conv2D)
@_sizes.register(keras.layers.Conv3D)
def _(layer, shape):
    filters = shape(layer.kernel)[-1]
    if layer.groups == 1 or layer.kernel.shape[-2] > 1:
        return {"filters": filters}
    # One input channel a group: there are as many groups as channels.
    return {"filters": filters, "groups": filters * layer.groups // layer.filters}


@_sizes.register(keras.layers.SeparableConv1D)
@_sizes.register(keras.layers.SeparableConv2D)
def _(layer, shape):
    return {"filters": shape(layer.pointwise_kernel)[-1]}


@_sizes.register(keras.layers.Conv1DTranspose)
@_sizes.register(keras.layers.Conv2DTranspose)
@_sizes.register(keras.layers.Conv3DTranspose)
def _(layer, shape):
    return {"filters": shape(layer.kernel)[-2]}


@_sizes.register(MaxoutDense)
def _(layer, shape):
    return {"units": shape(layer.kernel)[-2]}


@_sizes.register(MaxoutConv2D)
def _(layer, shape):
    return {"filters": shape(layer.kernel)[-2]}


@_sizes.register(keras.layers.Embedding)
def _(layer, shape):
    return {"output_dim": shape(layer.embeddings)[1]}


@_sizes.register(keras.layers.EinsumDense)
def _(layer, shape):
    left, result = layer.equation.replace(" ", "").split("->")
    made = dict(zip(left.split(",")[1], shape(layer.kernel), strict=True))
    # `output_shape` has an entry for each letter of the result but that of the batch.
    letters = result.replace("...", "")[-len(layer.partial_output_shape) :]
    sizes = zip(letters, layer.partial_output_shape, strict=True)
    return {"output_shape": tuple(made.get(letter, size) for letter, size in sizes)}


@_sizes.register(keras.layers.MultiHeadAttention)
def _(layer, shape):
    sizes = {"num_heads": shape(layer.query_dense.kernel)[1]}
    width = shape(layer.output_dense.kernel)[-1]
    if width != shape(layer.query_dense.kernel)[0] or layer.get_config()["output_shape"]:
        # By default the output is as wide as the query.
        sizes["output_shape"] = (width,)
    return sizes
