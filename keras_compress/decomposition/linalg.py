"""Truncated SVDs and spectra of kernel unfoldings, by the Gram matrix of the smaller side.

A kernel's unfolding is long and narrow (2304 x 256 for 3x3, 256 -> 256): the eigenvectors of the
small Gram matrix, summed in float64, cost a fraction of an SVD and lose nothing that a float32
kernel holds.
"""

import numpy as np

_BLOCK_ELEMENTS = 2**22


def gram(matrix):
    """`matrix.T @ matrix` in float64, summed over blocks of rows so that no float64 copy is made.

    Args:
        matrix: Array of shape `(rows, columns)`.
    """
    rows, columns = matrix.shape
    total = np.zeros((columns, columns))
    step = max(1, _BLOCK_ELEMENTS // columns)
    for start in range(0, rows, step):
        block = matrix[start : start + step].astype("float64")
        total += block.T @ block
    return total


def leading_eigenvectors(symmetric, count):
    """Orthonormal eigenvectors of the `count` largest eigenvalues, largest first, as columns."""
    _, vectors = np.linalg.eigh(symmetric)
    return vectors[:, : -count - 1 : -1]


def right_basis(matrix, count):
    """Orthonormal basis of the `count` leading right singular vectors of a matrix, float64.

    Args:
        matrix: Array of shape `(rows, columns)`.
        count: Number of vectors, at most `columns`.
    """
    rows, columns = matrix.shape
    if not count <= rows < columns:
        return leading_eigenvectors(gram(matrix), count)
    left = leading_eigenvectors(gram(matrix.T), count)
    return np.linalg.qr(matrix.T @ left)[0]


def squared_spectrum(matrix):
    """Squared singular values of a matrix in float64, largest first."""
    small = gram(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)
    return np.maximum(np.linalg.eigvalsh(small)[::-1], 0.0)


def truncated_svd(matrix, rank):
    """Best approximation of a given rank, as a product of two factors of equal norm.

    Args:
        matrix: Array of shape `(rows, columns)`.
        rank: Integer, at most the smaller side.

    Returns:
        `(left, right)` of shapes `(rows, rank)` and `(rank, columns)`: the singular vectors, each
        times the square root of its singular value, in the dtype of `matrix`.
    """
    if matrix.shape[0] < matrix.shape[1]:
        left, right = truncated_svd(matrix.T, rank)
        return right.T, left.T
    right = leading_eigenvectors(gram(matrix), rank).astype(matrix.dtype)
    left = matrix @ right
    # The singular values again, from the projected columns: small ones are lost in the Gram matrix.
    roots = np.sqrt(np.linalg.norm(left, axis=0))
    return left / np.where(roots > 0, roots, 1.0), (right * roots).T
