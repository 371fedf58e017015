"""Rotations and mirrors of the plane, and what they do to filters."""

import numpy as np
from keras import ops

from keras_compress import validation


class PlaneGroup:
    """A group of rotations by 90 degrees, with or without mirrors.

    Element `4 b + s` is `r^s m^b`: first `b` mirrors of left and right, then `s` rotations.

    Args:
        name: `"p4"` or `"p4m"`.
    """

    def __init__(self, name):
        self.name = name
        self.order = {"p4": 4, "p4m": 8}[name]

    def act(self, element, array):
        """An array with its first two axes, height and width, transformed."""
        mirrors, rotations = divmod(element, 4)
        return np.rot90(np.flip(array, 1) if mirrors else array, rotations)

    def product(self, first, second):
        """Element that does `second`, then `first`."""
        (b, s), (c, t) = divmod(first, 4), divmod(second, 4)
        # m r = r^-1 m.
        return 4 * (b ^ c) + (s - t if b else s + t) % 4

    def inverse(self, element):
        """Element that undoes another."""
        return next(h for h in range(self.order) if self.product(element, h) == 0)

    def shift(self, element):
        """For each orientation `h` the place `element^-1 h`, where `act` finds its values."""
        undo = self.inverse(element)
        return np.array([self.product(undo, h) for h in range(self.order)])

    def filter_table(self, size, channels, lifting):
        """Where the entries of each copy of a filter come from.

        Args:
            size: Height and width of the filters.
            channels: Input channels.
            lifting: Whether these are those of an image, without orientations.

        Returns:
            Integer array `(order, size * size * channels)`: for each element the places of its
            copy's entries in the filter.
        """
        orientations = 1 if lifting else self.order
        places = np.arange(size * size * channels).reshape(size, size, -1, orientations)
        copies = [self.act(g, places) for g in range(self.order)]
        if not lifting:
            copies = [copy[..., self.shift(g)] for g, copy in enumerate(copies)]
        return np.stack([copy.ravel() for copy in copies]).astype("int32")


def plane_group(name, owner=None):
    """The `PlaneGroup` called `"p4"` or `"p4m"`; errors speak for `owner`."""
    return PlaneGroup(validation.one_of("group", name, ("p4", "p4m"), owner))


def split_orientations(inputs, axis, order):
    """A tensor whose axis of channels is split in feature maps and orientations.

    Args:
        inputs: Tensor.
        axis: Its axis of channels, not negative.
        order: Number of orientations.
    """
    shape = ops.shape(inputs)
    sizes = (shape[axis] // order, order)
    return ops.reshape(inputs, (-1, *shape[1:axis], *sizes, *shape[axis + 1 :]))


def check_orientations(channels, group, owner):
    """Raises `ValueError` unless a number of channels can be feature maps of a group."""
    if channels is None or channels % group.order:
        raise ValueError(
            f"{validation.prefix(owner)}the input must be feature maps with {group.order} "
            f"orientations each ({group.name}), so that their number divides the channels; got "
            f"{channels} channels."
        )
