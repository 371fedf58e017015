"""`SparseDense`: a pruned dense layer on CPU."""

import keras
import numpy as np
import scipy.sparse

from keras_compress.sparse.sparse_op import SparseOp


class SparseDense(SparseOp):
    """Runs a pruned Dense layer by a sparse product, on CPU: inference only.

    Args:
        layer: A built `keras.layers.Dense`.

    Raises:
        ValueError: if the layer is another one, or not built.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> layer = keras.layers.Dense(2, use_bias=False)
    >>> layer.build((None, 3))
    >>> _ = layer.kernel.assign(np.array([[0, 1], [2, 0], [0, 0]]))
    >>> op = kc.sparse.SparseDense(layer)
    >>> op.nonzeros, op(np.array([[1.0, 10.0, 100.0]]))
    (2, array([[20.,  1.]], dtype=float32))
    """

    source = keras.layers.Dense

    def compressed(self, layer, kernel):
        return scipy.sparse.csr_array(kernel.T)

    def __call__(self, x):
        """Outputs for inputs `(batch, ..., inputs)`."""
        x = np.asarray(x)
        x = self.check_input(x, max(x.ndim, 2), -1, self.weights.shape[1])
        columns = np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)
        return self.run(columns).T.reshape(*x.shape[:-1], -1)

    def run(self, columns):
        """Outputs `(units, rows)` for inputs `(inputs, rows)`, contiguous."""
        return self.finish(self.weights @ columns, 0, (1, 0), (1, 0))
