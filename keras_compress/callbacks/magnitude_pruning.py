"""`MagnitudePruning`: zeros in the smallest weights, while `fit` runs."""

import keras

from keras_compress import matching, validation
from keras_compress.callbacks.scheduled_masks import ScheduledMasks, Target
from keras_compress.pruning import masks, schedules
from keras_compress.pruning.prunable import (
    all_layers,
    output_layers,
    prunable_kernels,
    trained_model,
)


class MagnitudePruning(ScheduledMasks):
    """Prunes the weights of smallest magnitude during `fit`, on a schedule.

    Pruned weights are held at exactly zero inside the compiled training step, whatever the
    optimizer; the callback only chooses new masks when its schedule says so. Masks and the
    schedule's state are part of the model: `.keras` files and `BackupAndRestore` carry them, and a
    later `fit` with an equal schedule goes on where the last one stopped (with another schedule, at
    its step 0). `kc.pruning.strip(model)` gives the plain pruned model.

    The share of zeros in all pruned weights is logged as `sparsity` at the end of each epoch. Put
    this callback before others that read logs (`TensorBoard`, `CSVLogger`, `ModelCheckpoint`):
    Keras hands the logs from one to the next. `History` and the progress bar always see it.

    Args:
        schedule: Object of `kc.pruning` (`PolynomialDecay`, `ConstantSparsity`, `CosineDecay`,
            `OneShot`), a tfmot schedule, or a callable `step -> (should_prune, sparsity)`. A step
            is one training batch. `None`: only layers that `rules` give one are pruned.
        granularity: What is pruned as one: `"weight"`; `"block"` of the kernel seen as a matrix
            (inputs, outputs); an `"n:m"` pattern such as `"2:4"` (n of m consecutive weights of an
            output stay); or `"filter"` (all weights of an output).
        block_size: `(rows, columns)`, for `"block"`.
        layers: Keys (layer name, glob, class or predicate) of the layers to prune. By default every
            trainable layer with a kernel: Dense, EinsumDense, convolutions and recurrent cells,
            also inside nested models and wrappers; with `"filter"`, not recurrent cells and not the
            layers that give the model's outputs. Embeddings are pruned only if named.
        rules: Dict from a key to a schedule of its own, or to `None` to leave those layers alone.
            The first key that fits a layer counts, before `layers`.
        threshold: `"quantile"`: the schedule's sparsity is met exactly in every layer. `"std"`:
            weights below `quality` standard deviations of the layer's surviving weights go, but
            never more than the schedule's sparsity; each due step of the schedule is one round of
            pruning and retraining.
        quality: For `"std"` only.

    Raises:
        ValueError: for arguments that do not make sense; at the start of `fit`, for a key that
            fits no layer or a model that has no weights yet.

    Reference:
        S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient
        Neural Networks", 2015. M. Zhu, S. Gupta, "To prune, or not to prune", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y = np.random.rand(64, 16), np.random.rand(64, 1)
    >>> pruning = kc.callbacks.MagnitudePruning(
    ...     kc.pruning.PolynomialDecay(0.0, 0.75, begin_step=0, end_step=8, frequency=2)
    ... )
    >>> history = model.fit(x, y, batch_size=16, epochs=2, callbacks=[pruning], verbose=0)
    >>> [round(s, 2) for s in history.history["sparsity"]]
    [0.65, 0.75]
    """

    def __init__(
        self,
        schedule=None,
        granularity="weight",
        block_size=None,
        layers=None,
        rules=None,
        threshold="quantile",
        quality=None,
    ):
        super().__init__()
        self.schedule = None if schedule is None else schedules.get(schedule)
        self.granularity, self.block_size = masks.check_granularity(granularity, block_size, self)
        self.layers = _keys(layers, self)
        self.rules = _rules(rules, self)
        self.threshold = validation.one_of("threshold", threshold, ("quantile", "std"), self)
        if (threshold == "std") != (quality is not None) or (
            threshold == "std" and granularity != "weight"
        ):
            raise ValueError(
                "MagnitudePruning: threshold='std' needs `quality` (1.0, say) and "
                "granularity='weight', and only it takes `quality`; got "
                f"threshold={threshold!r}, quality={quality!r}, granularity={granularity!r}."
            )
        self.quality = quality and validation.number("quality", quality, 0, owner=self)
        given = [s for s in [self.schedule, *self.rules.values()] if s is not None]
        if not given:
            raise ValueError(
                "MagnitudePruning: no layer would be pruned; give a `schedule`, or `rules` that "
                "name one."
            )
        for one in given:
            masks.check_final_sparsity(self.granularity, one.final_sparsity, self)

    # Set-up: Keras calls set_model before it makes the training function.

    def set_model(self, model):
        super().set_model(model)
        chosen = self._choose(trained_model(model, self))
        self.install([Target(kernel, schedule) for kernel, schedule in chosen])

    def _choose(self, model):
        """`(kernel, schedule)` for each weight that will be pruned."""
        kernels = prunable_kernels(model)
        for key in (*self.rules, *(self.layers or ())):
            matching.resolve([key], all_layers(model))
            if self.rules.get(key, True) and not any(k.matches(key) for k in kernels):
                raise ValueError(
                    f"MagnitudePruning: {matching.describe(key)} matches no layer with a kernel. "
                    f"Layers with one: {', '.join(k.name for k in kernels) or 'none'}."
                )
        outputs = output_layers(model) if self.granularity == "filter" else []
        chosen = [(kernel, self._schedule_of(kernel, outputs)) for kernel in kernels]
        chosen = [(kernel, schedule) for kernel, schedule in chosen if schedule is not None]
        if not chosen:
            raise ValueError(
                f"MagnitudePruning: model '{model.name}' has no layer to prune: none of its layers "
                "is trainable, has a kernel and is chosen by `layers` and `rules`."
            )
        return chosen

    def _schedule_of(self, kernel, outputs):
        for key, schedule in self.rules.items():
            if kernel.matches(key):
                return schedule
        if self.layers is not None:
            return self.schedule if any(kernel.matches(key) for key in self.layers) else None
        recurrent = hasattr(kernel.layer, "recurrent_kernel")
        whole = self.granularity == "filter" and (
            recurrent or any(layer in outputs for layer in kernel.chain)
        )
        # A layer that is not trained cannot make up for what is taken from it.
        fit = kernel.layer.trainable and kernel.attribute != "embeddings" and not whole
        return self.schedule if fit else None

    def prune(self, targets, sparsity):
        for target in targets:
            kernel = keras.ops.convert_to_numpy(target.kernel.variable).astype("float32")
            share = sparsity
            if self.threshold == "std":
                share = min(share, masks.std_sparsity(kernel, self.quality, target.read_mask()))
            mask = masks.magnitude_mask(
                kernel, share, self.granularity, self.block_size, target.kernel.output_axes
            )
            target.set_mask(mask)
            target.apply_mask()


def _keys(layers, owner):
    if layers is None:
        return None
    if isinstance(layers, (str, type)) or callable(layers):
        return (layers,)
    if isinstance(layers, dict) or not hasattr(layers, "__iter__"):
        raise ValueError(
            f"{validation.prefix(owner)}`layers` must be a list of layer names, globs, classes or "
            f"predicates; got layers={layers!r}. Schedules of single layers go to `rules`."
        )
    return tuple(layers)


def _rules(rules, owner):
    if rules is not None and not isinstance(rules, dict):
        raise ValueError(
            f"{validation.prefix(owner)}`rules` must be a dict from a layer name, glob, class or "
            f"predicate to a schedule or None; got rules={rules!r}."
        )
    return {
        key: None if rule is None else schedules.get(rule) for key, rule in (rules or {}).items()
    }
