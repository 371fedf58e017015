"""Blocks of a matrix: which of them stay, the same number for each block of outputs."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.masks import drop_count, keep_largest


def kept_blocks(scores, sparsity, balanced=True):
    """Chooses the blocks with the highest scores.

    Args:
        scores: Array `(block rows, block columns)`: a score of each block of a matrix
            `(inputs, outputs)`.
        sparsity: Share of the blocks to prune, in [0, 1).
        balanced: Whether each column of blocks keeps the same number, one at least.

    Returns:
        Boolean array of the same shape, true where blocks stay.

    Example:

    >>> kept_blocks(np.array([[1, 8], [2, 7], [3, 6], [4, 5]]), 0.5).astype(int)
    array([[0, 1],
           [0, 1],
           [1, 0],
           [1, 0]])
    """
    if not balanced:
        return keep_largest(scores, drop_count(scores.size, sparsity))
    drop = drop_count(len(scores), sparsity)
    keep = np.ones(scores.shape, bool)
    order = np.argsort(scores, axis=0, kind="stable")
    np.put_along_axis(keep, order[:drop], False, 0)
    return keep


def random_scores(shape, seed, index=0):
    """Scores under which blocks are chosen at random.

    Args:
        shape: `(block rows, block columns)`.
        seed: Integer in [0, 2**32).
        index: Number of the matrix, so that each of several gets its own.
    """
    # RandomState's stream is frozen: the seed alone restores the choice anywhere.
    return np.random.RandomState([seed, index]).random_sample(shape)


def check_block_size(block_size, owner=None):
    """Returns `(rows, columns)` of a block, from a pair or the side of a square one."""
    if isinstance(block_size, int):
        block_size = (block_size, block_size)
    block_size = validation.positive_ints("block_size", block_size, owner)
    if len(block_size) != 2:
        raise ValueError(
            f"{validation.prefix(owner)}`block_size` is (rows, columns) of a block, or the side of "
            f"a square one; got block_size={block_size!r}."
        )
    return block_size
