"""`BlockPruning`: whole blocks of a kernel at zero, as many for each block of outputs."""

import zlib

import numpy as np

from keras_compress import validation
from keras_compress.callbacks.mask_callback import MaskCallback, to_numpy, zero_pruned
from keras_compress.pruning.block_masks import check_block_size, kept_blocks, random_scores
from keras_compress.pruning.masks import group_scores
from keras_compress.pruning.prunable import kernels_of, trained_model


class BlockPruning(MaskCallback):
    """Coarse-grain sparsification: trains a model in which whole blocks of weights are zero.

    Each kernel, seen as a matrix (inputs, outputs), is cut into blocks. When `fit` begins, blocks
    are chosen and set to zero, and held there inside the compiled step. A later `fit` with an equal
    callback keeps the choice, as it is part of the model. `kc.pruning.strip(model)` gives the plain
    model, whose `.tflite` runs the blocks that stay as small matrix products if that pays; a dense
    layer becomes a `kc.layers.BlockSparseDense` by its `from_layer`.

    The share of zeros in all pruned weights is logged as `sparsity` at the end of each epoch.

    Args:
        block_size: `(rows, columns)` of a block, or the side of a square one. Blocks at the edges
            are smaller if it does not divide the kernel.
        sparsity: Share of the blocks that is zero, in [0, 1).
        choice: `"random"`: drawn from `seed`, whatever the weights are; for training from scratch.
            `"magnitude"`: the blocks with the smallest mean magnitude go; for trained models.
        balanced: Whether each block of outputs keeps the same number of blocks, so that an index of
            a few bits a block is enough and no output is left without inputs.
        layers: Keys (layer name, glob, class or predicate) of the layers to prune. By default every
            trainable layer with a kernel; embeddings only if named.
        seed: Integer seed, for `"random"`.

    Raises:
        ValueError: for arguments that do not make sense; at the start of `fit`, for a key that fits
            no layer or a model that has no weights yet.

    Reference:
        D. Kadetotad, S. Arunachalam, C. Chakrabarti, J. Seo, "Efficient Memory Compression in Deep
        Neural Networks Using Coarse-grain Sparsification for Speech Applications", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
    >>> model.compile("adam", "mse")
    >>> pruning = kc.callbacks.BlockPruning(block_size=16, sparsity=0.75)
    >>> x, y = np.random.rand(32, 64), np.random.rand(32, 32)
    >>> history = model.fit(x, y, callbacks=[pruning], verbose=0)
    >>> history.history["sparsity"]
    [0.75]
    """

    def __init__(
        self,
        block_size=(64, 64),
        sparsity=0.75,
        choice="random",
        balanced=True,
        layers=None,
        seed=0,
    ):
        super().__init__()
        self.block_size = check_block_size(block_size, self)
        self.sparsity_target = validation.number(
            "sparsity", sparsity, 0, 1, high_open=True, owner=self
        )
        self.choice = validation.one_of("choice", choice, ("random", "magnitude"), self)
        self.balanced = bool(balanced)
        self.layers = layers
        self.seed = validation.seed(seed, self)

    def set_model(self, model):
        super().set_model(model)
        kernels = kernels_of(trained_model(model, self), self.layers, "BlockPruning")
        self.install_masks(kernels)

    def on_epoch_begin(self, epoch, logs=None):
        # Here and not earlier: BackupAndRestore restores in its on_train_begin.
        with self.scope():
            for index, (kernel, mask) in enumerate(self.pruned):
                if to_numpy(mask.progress)[2] != self._mark:
                    mask.set_mask(self._choose(kernel, index))
                    mask.progress.assign(np.array([0, 0, self._mark], "int32"))
                    zero_pruned(kernel, mask)

    def on_train_end(self, logs=None):
        self.apply_masks()

    def _choose(self, kernel, index):
        sizes = np.abs(to_numpy(kernel.variable).astype("float32"))
        scores, _, spread = group_scores(sizes, "block", self.block_size, kernel.output_axes)
        if self.choice == "random":
            scores = random_scores(scores.shape, self.seed, index)
        return spread(kept_blocks(scores, self.sparsity_target, self.balanced))

    @property
    def _mark(self):
        what = (self.block_size, self.sparsity_target, self.choice, self.balanced, self.seed)
        return zlib.crc32(repr(("blocks", *what)).encode()) & 0x7FFFFFFF
