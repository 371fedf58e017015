"""Dropout for the retraining of a pruned model."""

import math

from keras_compress import validation


def retraining_dropout_rate(rate, sparsity):
    """Dropout rate for a layer that lost some of its connections.

    Pruning takes capacity away, and dropout with it: with `C_o` connections before and `C_r` after,
    the rate falls to `rate * sqrt(C_r / C_o)`.

    Args:
        rate: Rate that the model was trained with, in [0, 1).
        sparsity: Share of the connections that are pruned, in [0, 1).

    Returns:
        A float.

    Raises:
        ValueError: if either is out of range.

    Reference:
        S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient
        Neural Networks", 2015, section 3.2.

    Example:

    >>> retraining_dropout_rate(0.5, sparsity=0.84)
    0.2
    """
    owner = "retraining_dropout_rate"
    rate = validation.number("rate", rate, 0, 1, high_open=True, owner=owner)
    sparsity = validation.number("sparsity", sparsity, 0, 1, high_open=True, owner=owner)
    return rate * math.sqrt(1.0 - sparsity)
