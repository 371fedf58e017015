"""`Contributions`: what each input channel gives to the outputs of a layer, as inner products."""

import numpy as np

from keras_compress.pruning.surgery import FIXED

# Inputs of a layer up to which their second moments are held, and entries held at a time.
_WIDEST = 8192
_ENTRIES = 2**23


class Contributions:
    """The Gram matrix of what the channels that a layer reads give to its outputs.

    The output of a layer without bias is the sum of one contribution for each channel, summed over
    the places that the channel has among the inputs (several after Flatten):
    `Z_c = P[:, places of c] K[places of c]`. Held is `G_ik = <Z_i, Z_k>`, over rows and outputs.

    Args:
        matrix: float64 array `(inputs, outputs)`: the lowered kernel.
        channels: Numbers of the channels of the inputs, in the order of the layer's input channels;
            `matrix` repeats them for each tap of the kernel.

    Attributes:
        numbers: Sorted numbers of the channels; those that must stay (`FIXED`), if any, are one.
        columns: Place in `numbers` of each of the layer's input channels.
    """

    def __init__(self, matrix, channels):
        self.numbers, self.columns = np.unique(channels, return_inverse=True)
        self._matrix = matrix
        each = np.tile(self.columns, len(matrix) // len(channels))
        order = np.argsort(each, kind="stable")
        self._starts = np.searchsorted(each[order], np.arange(len(self.numbers)))
        self._order = order
        self._places = np.split(order, self._starts[1:])
        self._wide = len(matrix) > _WIDEST
        self._moments, self._products = 0.0, 0.0

    @property
    def free(self):
        """Which of `numbers` may go."""
        return self.numbers != FIXED

    def update(self, rows):
        """Takes in an array `(rows, inputs)`."""
        if not self._wide:
            self._moments = self._moments + rows.T @ rows
            return
        each = max(1, _ENTRIES // (len(self.numbers) * self._matrix.shape[1]))
        for start in range(0, len(rows), each):
            part = rows[start : start + each]
            given = np.stack([(part[:, p] @ self._matrix[p]).ravel() for p in self._places])
            self._products = self._products + given @ given.T

    def products(self):
        """The Gram matrix `(channels, channels)`."""
        if self._wide:
            return self._products
        # <P_i K_i, P_k K_k> = sum of (P^T P)_ik * (K K^T)_ik: no contribution is written out.
        matrix = self._matrix
        each = max(1, _ENTRIES // len(matrix))
        rows = []
        for start in range(0, len(matrix), each):
            part = slice(start, start + each)
            products = self._moments[part] * (matrix[part] @ matrix.T)
            rows.append(np.add.reduceat(products[:, self._order], self._starts, 1))
        return self._per_channel(np.concatenate(rows))

    def summed(self, array):
        """Sum over the outputs and over the places of each channel, of an array of the kernel's."""
        return self._per_channel(array.sum(1))

    def _per_channel(self, array):
        return np.add.reduceat(array[self._order], self._starts)
