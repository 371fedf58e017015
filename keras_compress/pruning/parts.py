"""The layer that a function is to prune, who reads it, and how many of its channels stay."""

import math
import numbers

import keras
import numpy as np

from keras_compress import validation
from keras_compress.pruning.surgery import FIXED

_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def free_producer(graph, name, owner):
    """The `Producer` of that name, each of whose channels may go on its own.

    Args:
        graph: `ChannelGraph` of the model.
        name: Name of the layer, with those of the models around it.
        owner: Name that error messages begin with.
    """
    producers = {p.name: p for p in graph.producers if p.axis is not None}
    if name not in producers:
        raise ValueError(
            f"{owner}: the model has no layer {name!r} that makes channels."
            f"{validation.did_you_mean(name, producers)} It has: {', '.join(producers)}."
        )
    channels = producers[name].channels
    if (channels == FIXED).any() or len(np.unique(channels)) < len(channels):
        raise ValueError(
            f"{owner}: channels of '{name}' must stay (they are outputs of the model, or a layer "
            "that is kept whole reads them) or are tied to one another. Choose another layer."
        )
    return producers[name]


def readers_of(graph, channels):
    """The `Consumer`s of a `ChannelGraph` that read some channels."""
    return [reader for reader in graph.consumers if np.isin(channels, reader.channels).any()]


def stand_in_fault(reader, channels):
    """Why weights of a `Consumer` cannot move from one channel to another; `None` if they can.

    Args:
        reader: The `Consumer`.
        channels: Numbers of the channels.
    """
    if isinstance(reader.layer, _SEPARABLE):
        return (
            f"'{reader.name}' ({type(reader.layer).__name__}) filters each channel before it sums "
            "over them, so that no channel can stand in for another"
        )
    if len({np.count_nonzero(reader.channels == channel) for channel in channels}) > 1:
        return (
            f"'{reader.name}' does not read every channel equally often, so that no channel can "
            "stand in for another"
        )
    return None


def places_of(reader, channels):
    """Places of channels among the inputs of a `Consumer`: `(channels, places of each)`."""
    # Several where Flatten spread them.
    return np.stack([np.flatnonzero(reader.channels == channel) for channel in channels])


def number_to_keep(keep, count, owner):
    """How many of `count` channels stay.

    Args:
        keep: Their number, or their share as a float in (0, 1], rounded up.
        count: Number of all.
        owner: Name that error messages begin with.
    """
    if isinstance(keep, numbers.Integral):
        return validation.integer("keep", keep, 1, count, owner)
    share = validation.number("keep", keep, 0, 1, low_open=True, owner=owner)
    return math.ceil(share * count)
