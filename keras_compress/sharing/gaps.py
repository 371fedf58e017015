"""Positions of the few entries that differ from the others, as differences of few bits."""

import numpy as np

from keras_compress import validation

#: Bits of a difference in the reference.
CONV_BITS, DENSE_BITS = 8, 5
MAX_BITS = 12


def gaps_of(positions, bits):
    """Differences of ascending positions, each at most `2**bits`, fillers where they overflow.

    Args:
        positions: Ascending integers >= 0.
        bits: Bits of a difference, at most 12: 8 for convolutions and 5 for dense layers in the
            reference.

    Returns:
        `(gaps, real)`: uint16 array of differences less one (the first is from position -1), and a
        boolean array, false for the fillers: steps of `2**bits` to an entry that is zero.

    Raises:
        ValueError: if positions do not ascend, or `bits` is out of range.

    Reference:
        Han, Mao, Dally, "Deep Compression", 2016, section 2.

    Example:

    >>> gaps, real = gaps_of([2, 302], bits=8)
    >>> (gaps + 1).tolist(), real.tolist()
    ([3, 256, 44], [True, False, True])
    """
    bits = validation.integer("bits", bits, 1, MAX_BITS, "gaps_of")
    positions = np.asarray(positions, "int64")
    steps = np.diff(positions, prepend=-1) - 1
    if positions.ndim != 1 or (steps.size and steps.min() < 0):
        raise ValueError("gaps_of: `positions` must be a list of ascending integers >= 0.")
    fillers = steps >> bits
    ends = np.cumsum(fillers + 1) - 1
    count = int(ends[-1]) + 1 if steps.size else 0
    gaps = np.full(count, 2**bits - 1, "uint16")
    real = np.zeros(count, bool)
    gaps[ends], real[ends] = steps & (2**bits - 1), True
    return gaps, real


def positions_of(gaps):
    """Positions of the entries of `gaps_of`, those of fillers included.

    Args:
        gaps: Differences less one.

    Returns:
        int64 array.

    Example:

    >>> positions_of([2, 255, 43]).tolist()
    [2, 258, 302]
    """
    return np.cumsum(np.asarray(gaps, "int64") + 1) - 1
