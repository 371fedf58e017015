"""Kernels that a crossbar with four types of inputs can hold at all positions of an image.

A neuron of such a crossbar has four strengths, one for each type that an input may have, and each
connection is on or off. A convolution fits it if the type of the input at row `i`, column `j` is
`sv^i sh^j (g)` for two permutations `sv`, `sh` of the four types that commute. A slice of its
kernel is then `mask[i, j] * strength[pattern[i, j]]`, with the pattern that these permutations and
the type `g` draw.

Reference:
    Appuswamy, Nayak, Arthur, Esser, Merolla, McKinstry, Melano, Flickner, Modha, "Structured
    Convolution Matrices for Energy-efficient Deep Learning", 2016.
"""

import functools
import itertools

import numpy as np
from keras import ops

from keras_compress import validation

TYPES = 4


def commuting_pairs():
    """All ordered pairs of permutations of four types that commute: 120, as tuples of tuples."""
    permutations = list(itertools.permutations(range(TYPES)))

    def after(p, q):
        return tuple(p[i] for i in q)

    return [(p, q) for p in permutations for q in permutations if after(p, q) == after(q, p)]


@functools.lru_cache(maxsize=32)
def s4_patterns(kernel_size):
    """The distinct patterns of types that commuting permutations draw.

    Patterns that differ by the names of the types alone hold the same kernels, and count as one.

    Args:
        kernel_size: Pair, or integer for a square.

    Returns:
        int array `(patterns, height, width)`, types numbered in the order in which they appear.

    Example:

    >>> s4_patterns(3).shape[1:], int(s4_patterns(3).max())
    ((3, 3), 3)
    """
    if not isinstance(kernel_size, tuple):
        kernel_size = (kernel_size, kernel_size)
    height, width = validation.positive_ints("kernel_size", kernel_size)
    found = set()
    for vertical, horizontal in commuting_pairs():
        for start in range(TYPES):
            pattern, row = [], start
            for _ in range(height):
                kind = row
                for _ in range(width):
                    pattern.append(kind)
                    kind = horizontal[kind]
                row = vertical[row]
            names = {kind: name for name, kind in enumerate(dict.fromkeys(pattern))}
            found.add(tuple(names[kind] for kind in pattern))
    patterns = np.array(sorted(found)).reshape(-1, height, width)
    patterns.flags.writeable = False
    return patterns


def project_s4(kernel):
    """The nearest kernel in the least-squares sense each slice of which a crossbar can hold.

    Exact: of all patterns, masks and strengths.

    Args:
        kernel: Tensor `(height, width, channels, filters)`.

    Returns:
        Tensor of that shape.
    """
    height, width, *rest = kernel.shape
    patterns = s4_patterns((height, width)).reshape(-1, height * width)
    slices = ops.transpose(ops.reshape(kernel, (height * width, -1)))
    # Few sets of positions make up all patterns.
    members = [
        tuple(np.flatnonzero(pattern == kind)) for pattern in patterns for kind in range(TYPES)
    ]
    sets = sorted({positions for positions in members if positions})
    masks = np.zeros((len(sets), height * width), "float32")
    for row, positions in zip(masks, sets, strict=True):
        row[list(positions)] = 1
    parts = np.zeros((len(sets), len(patterns)), "float32")
    for index, positions in enumerate(members):
        if positions:
            parts[sets.index(positions), index // TYPES] = 1
    gains, _ = _shared_strength(slices[:, None] * ops.convert_to_tensor(masks, slices.dtype))
    best = ops.argmax(ops.matmul(gains, ops.convert_to_tensor(parts, slices.dtype)), axis=-1)
    kinds = ops.take(ops.convert_to_tensor(patterns, "int32"), best, axis=0)
    of_kind = ops.cast(ops.equal(kinds[:, None], np.arange(TYPES)[:, None]), slices.dtype)
    values = slices[:, None] * of_kind
    _, strengths = _shared_strength(values)
    # What is nearer to the strength than to zero is on.
    on = ops.cast(ops.greater(2 * values * strengths, strengths**2), slices.dtype)
    projected = ops.sum(on * strengths, axis=1)
    return ops.reshape(ops.transpose(projected), (height, width, *rest))


def _shared_strength(values):
    """The best value for those of the last axis that are on, and what it explains.

    The sum of squares falls by `(sum of those that are on)^2 / their number`, and those are the
    largest ones, or the smallest: zeros never help, so that absent positions may be zeros.

    Returns:
        `(gains, strengths)`: tensors `(...)` and `(..., 1)`.
    """
    count = np.arange(1, values.shape[-1] + 1)
    found = []
    for sign in (1.0, -1.0):
        ordered = ops.flip(ops.sort(ops.relu(sign * values), axis=-1), axis=-1)
        means = ops.cumsum(ordered, axis=-1) / ops.convert_to_tensor(count, values.dtype)
        gains = means**2 * ops.convert_to_tensor(count, values.dtype)
        best = ops.argmax(gains, axis=-1)[..., None]
        found.append(
            (ops.take_along_axis(gains, best, -1), sign * ops.take_along_axis(means, best, -1))
        )
    (gain, strength), (other_gain, other_strength) = found
    gains = ops.maximum(gain, other_gain)
    return gains[..., 0], ops.where(gain >= other_gain, strength, other_strength)
