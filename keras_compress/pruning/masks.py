"""Masks: scores, a sparsity and a granularity -> which weights stay. Pure numpy.

A score says how much a weight matters (higher: keep); magnitude pruning scores by `abs(kernel)`.
`mask_from_scores` pools scores over the groups of the granularity, keeps the largest groups, and
spreads the choice back over the kernel.
"""

import re

import numpy as np

from keras_compress import validation

GRANULARITIES = ("weight", "block", "filter")


def check_granularity(granularity, block_size=None, owner=None):
    """Returns `granularity` and `block_size` if they make sense together.

    Args:
        granularity: `"weight"`, `"block"`, `"filter"`, or a pattern `"n:m"` such as `"2:4"`: n
            weights stay of m consecutive ones.
        block_size: `(rows, columns)` of a block of the kernel seen as a matrix (inputs, outputs);
            for `"block"` only.
        owner: Object or name that error messages begin with.

    Returns:
        `(granularity, block_size)`, `block_size` as a tuple or `None`.
    """
    if isinstance(granularity, str) and re.fullmatch(r"\d+:\d+", granularity):
        kept, group = pattern(granularity)
        if not 0 < kept < group:
            raise ValueError(
                f"{validation.prefix(owner)}in a pattern 'n:m', n weights of m consecutive ones "
                f"stay, with 0 < n < m; got granularity={granularity!r}."
            )
    elif granularity not in GRANULARITIES:
        raise ValueError(
            f"{validation.prefix(owner)}`granularity` must be one of "
            f"{', '.join(map(repr, GRANULARITIES))} or a pattern such as '2:4'; got "
            f"granularity={granularity!r}.{validation.did_you_mean(granularity, GRANULARITIES)}"
        )
    if granularity != "block":
        if block_size is not None:
            raise ValueError(
                f"{validation.prefix(owner)}`block_size` goes with granularity='block'; got "
                f"granularity={granularity!r}, block_size={block_size!r}."
            )
        return granularity, None
    if block_size is None or not np.iterable(block_size) or len(block_size) != 2:
        raise ValueError(
            f"{validation.prefix(owner)}granularity='block' needs `block_size=(rows, columns)` of "
            f"a block, (4, 4) for example; got block_size={block_size!r}."
        )
    return granularity, validation.positive_ints("block_size", block_size, owner)


def pattern(granularity):
    """`(n, m)` of a granularity `"n:m"`, else `None`."""
    if ":" not in granularity:
        return None
    kept, group = granularity.split(":")
    return int(kept), int(group)


def check_final_sparsity(granularity, sparsity, owner=None):
    """Raises `ValueError` if a schedule ends at a sparsity that an n:m pattern cannot give."""
    if pattern(granularity) is None or sparsity is None:
        return
    kept, group = pattern(granularity)
    share = 1 - kept / group
    if abs(float(sparsity) - share) > 1e-6:
        raise ValueError(
            f"{validation.prefix(owner)}the pattern {granularity!r} ends at a sparsity of "
            f"{share:g}; the schedule ends at {float(sparsity):g}. Set its final sparsity to "
            f"{share:g}, or choose another pattern or granularity='weight'."
        )


def drop_count(size, sparsity):
    """How many of `size` groups a sparsity prunes: rounded half up, and at least one stays."""
    sparsity = validation.number("sparsity", sparsity, 0, 1, high_open=True)
    return min(int(np.floor(sparsity * size + 0.5)), max(size - 1, 0))


def keep_largest(scores, drop):
    """Boolean array that is false at exactly the `drop` smallest scores.

    Of equal scores the one that comes first in memory goes first.
    """
    flat = np.ravel(scores)
    if drop <= 0:
        return np.ones(np.shape(scores), bool)
    # Weights that are pruned already tie for the smallest score, and partition is slow on ties.
    threshold = flat.min()
    if threshold != threshold:
        # A diverged weight is no small one.
        flat = np.where(np.isnan(flat), np.inf, flat)
        threshold = flat.min()
    if drop > np.count_nonzero(flat == threshold):
        threshold = _nth_smallest(flat, drop - 1, above=threshold)
    # Comparisons of whole arrays: indexing by a mask takes many times as long.
    keep = flat >= threshold
    ties = np.flatnonzero(flat == threshold)
    keep[ties[: drop - (flat.size - np.count_nonzero(keep))]] = False
    return keep.reshape(np.shape(scores))


def _nth_smallest(values, n, above):
    """`np.sort(values)[n]`, known to be larger than `above`.

    A sample says where to look, so that few values are partitioned.
    """
    sample = np.sort(values[:: max(1, len(values) // 4096)])
    place, margin = n / len(values) * len(sample), 0.02 * len(sample)
    low = sample[max(0, int(place - margin))]
    high = sample[min(len(sample) - 1, int(place + margin) + 1)]
    inside = (values > above) & (values >= low) & (values <= high)
    below = np.count_nonzero((values <= above) | (values < low))
    if not below <= n < below + np.count_nonzero(inside):
        # The sample was no good: neighbouring weights that are alike, say.
        inside = values > above
        below = len(values) - np.count_nonzero(inside)
    return np.partition(values[inside], n - below)[n - below]


def magnitude_mask(kernel, sparsity, granularity="weight", block_size=None, output_axes=(-1,)):
    """Mask that keeps the weights (or groups of weights) of largest magnitude.

    Args:
        kernel: Array of weights.
        sparsity: Share of groups to prune, in [0, 1).
        granularity: See `check_granularity`.
        block_size: See `check_granularity`.
        output_axes: Axes of the kernel that count outputs; all others are summed over by the layer.

    Returns:
        Boolean array of the kernel's shape, true where weights stay.

    Example:

    >>> import keras_compress as kc
    >>> kernel = [[1.0, -4.0], [2.0, 0.5], [-3.0, 3.0], [0.1, -0.2]]
    >>> kc.pruning.magnitude_mask(kernel, 0.5, "2:4").astype(int)
    array([[0, 1],
           [1, 0],
           [1, 1],
           [0, 0]])
    """
    scores = np.abs(np.asarray(kernel).astype("float32"))
    return mask_from_scores(scores, sparsity, granularity, block_size, output_axes)


def mask_from_scores(scores, sparsity, granularity="weight", block_size=None, output_axes=(-1,)):
    """Mask that keeps the groups with the largest scores; arguments as of `magnitude_mask`.

    A group's score is the mean of its weights' scores. At least one group stays. With an n:m
    pattern and a sparsity below 1 - n/m the pattern is put on the share of groups that loses the
    least; a last group shorter than m stays whole.
    """
    granularity, block_size = check_granularity(granularity, block_size)
    scores = np.asarray(scores)
    if pattern(granularity) is not None:
        matrix, restore = to_matrix(scores, output_axes)
        return restore(_pattern_mask(matrix, sparsity, granularity))
    pooled, _, spread = group_scores(scores, granularity, block_size, output_axes)
    return spread(keep_largest(pooled, drop_count(pooled.size, sparsity)))


def group_scores(scores, granularity="weight", block_size=None, output_axes=(-1,)):
    """Mean scores of the groups of weights that are pruned as one; not for n:m patterns.

    Returns:
        `(groups, sizes, spread)`: arrays with the mean score and the number of weights of each
        group, and a function from a boolean array over groups to one over weights.
    """
    scores = np.asarray(scores)
    if granularity == "weight":
        return scores, np.ones(scores.shape, int), lambda keep: keep
    matrix, restore = to_matrix(scores, output_axes)
    if granularity == "filter":
        sizes = np.full(matrix.shape[1], matrix.shape[0])
        return matrix.mean(0), sizes, lambda keep: restore(np.broadcast_to(keep, matrix.shape))
    sums, sizes = _block_sums(matrix, block_size)

    def spread(keep):
        (rows, columns), (height, width) = matrix.shape, block_size
        return restore(keep.repeat(height, 0).repeat(width, 1)[:rows, :columns])

    return sums / sizes, sizes, spread


def std_sparsity(kernel, quality, mask=None):
    """Share of weights below `quality` standard deviations of the weights that `mask` keeps."""
    kernel = np.asarray(kernel).astype("float32")
    surviving = kernel if mask is None else kernel[mask]
    return float(np.mean(np.abs(kernel) < quality * surviving.std()))


def to_matrix(array, output_axes=(-1,)):
    """Sees a kernel as a matrix (inputs, outputs).

    Returns:
        `(matrix, restore)`: a function that brings a matrix of that shape back to the kernel's.
    """
    outputs = sorted(axis % array.ndim for axis in output_axes)
    order = [axis for axis in range(array.ndim) if axis not in outputs] + outputs
    moved = array.transpose(order)
    columns = int(np.prod(moved.shape[array.ndim - len(outputs) :]))

    def restore(matrix):
        return np.ascontiguousarray(matrix.reshape(moved.shape).transpose(np.argsort(order)))

    return moved.reshape(-1, columns), restore


def _block_sums(matrix, block_size):
    """Sums over blocks, and how many entries of the matrix each block has."""
    (rows, columns), (height, width) = matrix.shape, block_size
    tall, wide = -(-rows // height), -(-columns // width)
    padded = np.zeros((tall * height, wide * width), matrix.dtype)
    padded[:rows, :columns] = matrix
    heights = np.minimum(height, rows - height * np.arange(tall))
    widths = np.minimum(width, columns - width * np.arange(wide))
    return padded.reshape(tall, height, wide, width).sum((1, 3)), np.outer(heights, widths)


def _pattern_mask(matrix, sparsity, granularity):
    kept, group = pattern(granularity)
    share = 1 - kept / group
    sparsity = validation.number("sparsity", sparsity, 0, 1, high_open=True)
    if sparsity > share + 1e-6:
        check_final_sparsity(granularity, sparsity)
    rows, columns = matrix.shape
    whole = rows // group
    mask = np.ones(matrix.shape, bool)
    if whole == 0:
        return mask
    # A stable sort makes the choice among equal scores the same everywhere: the first goes first.
    groups = matrix[: whole * group].reshape(whole, group, columns).transpose(0, 2, 1)
    order = np.argsort(groups, -1, kind="stable")[..., : group - kept]
    lost = np.take_along_axis(groups, order, -1).sum(-1)
    patterned = ~keep_largest(lost, int(np.floor(min(1.0, sparsity / share) * lost.size + 0.5)))
    keep = np.ones(groups.shape, bool)
    np.put_along_axis(keep, order, ~patterned[..., None], -1)
    mask[: whole * group] = keep.transpose(0, 2, 1).reshape(whole * group, columns)
    return mask
