"""The layer that a function is to prune, and how many of its channels stay."""

import math
import numbers

import numpy as np

from keras_compress import validation
from keras_compress.pruning.surgery import FIXED


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
