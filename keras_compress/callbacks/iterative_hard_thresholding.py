"""`IterativeHardThresholding`: sparse and dense phases in turn, while `fit` runs."""

import zlib

import numpy as np

from keras_compress import validation
from keras_compress.callbacks.mask_callback import MaskCallback, to_numpy, zero_pruned
from keras_compress.pruning.masks import magnitude_mask
from keras_compress.pruning.prunable import kernels_of, trained_model


class IterativeHardThresholding(MaskCallback):
    """Trains a model in turns with its largest weights only and with all of them.

    A cycle is a *sparse* phase (of each layer the weights of largest magnitude stay, the others
    are zero and held there inside the compiled step) and a *dense* phase (all weights are trained,
    those that were zero from zero). The next cycle chooses anew, so that a weight can come back.
    When `fit` ends in a dense phase, a last threshold is taken, and the model is sparse.

    Phases begin with epochs and are counted over all epochs that this callback has seen. Masks and
    the count are part of the model: `.keras` files and `BackupAndRestore` carry them, and a later
    `fit` with an equal callback goes on. `kc.pruning.strip(model)` gives the plain model.

    The share of zeros in all pruned weights is logged as `sparsity` at the end of each epoch.

    Args:
        sparsity: Share of each layer's weights that is zero in sparse phases, in [0, 1).
        sparse_epochs: Epochs of a sparse phase.
        dense_epochs: Epochs of a dense phase.
        layers: Keys (layer name, glob, class or predicate) of the layers to prune. By default every
            trainable layer with a kernel; embeddings only if named.

    Raises:
        ValueError: for arguments that do not make sense; at the start of `fit`, for a key that fits
            no layer or a model that has no weights yet.

    Reference:
        X. Jin, X. Yuan, J. Feng, S. Yan, "Training Skinny Deep Neural Networks with Iterative Hard
        Thresholding Methods", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y = np.random.rand(64, 16), np.random.rand(64, 1)
    >>> thresholding = kc.callbacks.IterativeHardThresholding(0.5, sparse_epochs=2, dense_epochs=1)
    >>> history = model.fit(x, y, epochs=5, callbacks=[thresholding], verbose=0)
    >>> history.history["sparsity"]
    [0.5, 0.5, 0.0, 0.5, 0.5]
    """

    def __init__(self, sparsity, sparse_epochs, dense_epochs, layers=None):
        super().__init__()
        self.sparsity_target = validation.number(
            "sparsity", sparsity, 0, 1, high_open=True, owner=self
        )
        self.sparse_epochs = validation.positive_int("sparse_epochs", sparse_epochs, self)
        self.dense_epochs = validation.positive_int("dense_epochs", dense_epochs, self)
        self.layers = layers

    def set_model(self, model):
        super().set_model(model)
        kernels = kernels_of(trained_model(model, self), self.layers, "IterativeHardThresholding")
        self.install_masks(kernels)

    # Epochs are counted as they begin: BackupAndRestore then saves the same count, whether it
    # comes before this callback or after.

    def on_epoch_begin(self, epoch, logs=None):
        with self.scope():
            for kernel, mask in self.pruned:
                begun = self._begun(mask)
                place = begun % (self.sparse_epochs + self.dense_epochs)
                if place == 0:
                    self._threshold(kernel, mask)
                elif place >= self.sparse_epochs:
                    mask.set_mask(np.ones(mask.shape, bool))
                mask.progress.assign(np.array([begun + 1, 0, self._mark], "int32"))

    def on_train_end(self, logs=None):
        self.apply_masks()
        with self.scope():
            for kernel, mask in self.pruned:
                if mask.read_mask().all():
                    # A dense phase was the last.
                    self._threshold(kernel, mask)

    def _threshold(self, kernel, mask):
        """Keeps the largest weights of a kernel; of equal ones, the first in memory go first."""
        mask.set_mask(magnitude_mask(to_numpy(kernel.variable), self.sparsity_target))
        zero_pruned(kernel, mask)

    def _begun(self, mask):
        """Epochs that have begun since the first one with an equal callback."""
        begun, _, mark = to_numpy(mask.progress)
        return int(begun) if mark == self._mark else 0

    @property
    def _mark(self):
        what = ("IHT", self.sparsity_target, self.sparse_epochs, self.dense_epochs)
        return zlib.crc32(repr(what).encode()) & 0x7FFFFFFF
