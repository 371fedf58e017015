"""`MaskCallback`: base of callbacks that hold weights under masks."""

import contextlib

import keras
import numpy as np

from keras_compress.pruning.pruning_mask import carry_masks


class MaskCallback(keras.callbacks.Callback):
    """Logs the share of zeros in the pruned weights, as `sparsity`, at the end of each epoch.

    A subclass fills `pruned` in `set_model`.

    Attributes:
        pruned: List of pairs of a `PrunableKernel` and its `PruningMask`.
    """

    def __init__(self):
        super().__init__()
        self.pruned = []

    def scope(self):
        """Where variables of the model can be made and assigned."""
        return variable_scope(self.model)

    def install_masks(self, kernels):
        """Fills `pruned`: puts a `PruningMask` on kernels, or finds those that are there.

        Args:
            kernels: List of `PrunableKernel`.
        """
        with self.scope():
            installed = [kernel.install_mask() for kernel in kernels]
        self.pruned = [(k, mask) for k, (mask, _) in zip(kernels, installed, strict=True)]
        if any(new for _, new in installed):
            # A step compiled earlier has the old constraints in it.
            self.model.train_function = None
        carry_masks(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        if logs is not None:
            logs["sparsity"] = self.sparsity

    def apply_masks(self):
        """Zeroes what the masks prune; needed after a change of masks, and at the end of `fit`.

        There an optimizer with a moving average of weights has just written that over them.
        """
        with self.scope():
            for kernel, mask in self.pruned:
                zero_pruned(kernel, mask)

    @property
    def layer_sparsity(self):
        """Dict from the name of each pruned weight to the share of it that is masked."""
        return {kernel.name: 1 - float(mask.read_mask().mean()) for kernel, mask in self.pruned}

    @property
    def sparsity(self):
        """Share of all pruned weights that is masked."""
        masks = [mask.read_mask() for _, mask in self.pruned]
        return 1 - int(sum(mask.sum() for mask in masks)) / sum(mask.size for mask in masks)


def variable_scope(model):
    """Where variables of a model can be made and assigned."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def zero_pruned(kernel, mask):
    """Zeroes what a mask prunes in a `PrunableKernel`'s weight."""
    # Not by a product, which leaves negative zeros.
    kernel.variable.assign(np.where(mask.read_mask(), to_numpy(kernel.variable), 0))


def to_numpy(variable):
    """The value of a variable."""
    return keras.ops.convert_to_numpy(variable)
