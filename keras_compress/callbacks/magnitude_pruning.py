"""`MagnitudePruning`: zeros in the smallest weights, while `fit` runs."""

import contextlib
import warnings

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.pruning import masks, schedules
from keras_compress.pruning.prunable import (
    all_layers,
    output_layers,
    prunable_kernels,
    unbuilt_layers,
)
from keras_compress.pruning.pruning_mask import carry_masks


class MagnitudePruning(keras.callbacks.Callback):
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
        self._targets = []
        self._courses = []
        self._warned = False

    # Set-up: Keras calls set_model before it makes the training function.

    def set_model(self, model):
        super().set_model(model)
        unbuilt = [layer.name for layer in unbuilt_layers(model)]
        if not model.built or unbuilt:
            raise ValueError(
                f"MagnitudePruning: model '{model.name}' has layers without weights "
                f"({', '.join(unbuilt) or 'all'}); call the model on a batch before fit()."
            )
        self._targets = [_Target(k, s) for k, s in self._choose(model)]
        with self._scope():
            new = [target.install() for target in self._targets]
        if any(new):
            # A step compiled earlier has the old constraints in it.
            model.train_function = None
        carry_masks(model)
        self._courses = []

    def _choose(self, model):
        """`(kernel, schedule)` for each weight that will be pruned."""
        if isinstance(model, keras.distillation.Distiller):
            # The teacher stays as it is, and the adapters are not kept.
            model = model.student
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

    def _scope(self):
        strategy = getattr(self.model, "distribute_strategy", None)
        return contextlib.nullcontext() if strategy is None else strategy.scope()

    # The schedule's clock.

    def on_train_begin(self, logs=None):
        self._courses = []

    def on_epoch_begin(self, epoch, logs=None):
        # Here and not earlier: BackupAndRestore restores in its on_train_begin.
        if not self._courses:
            self._start()
            self._warn_if_cut_short(epoch)
        self._begin_counting()

    def on_train_batch_begin(self, batch, logs=None):
        if not self._courses:
            self._start()
            self._begin_counting()
        if self._first_batch is None:
            self._first_batch = batch
        self._advance(self._seen + batch - self._first_batch)

    def on_epoch_end(self, epoch, logs=None):
        seen = _batches_seen(self.model.optimizer)
        self._advance(seen)
        for course in self._courses:
            course.note()
        if logs is not None:
            logs["sparsity"] = self.sparsity

    def on_train_end(self, logs=None):
        # An optimizer with a moving average of weights has just written that over the weights.
        with self._scope():
            for target in self._targets:
                target.apply_mask()

    def _start(self):
        if getattr(self.model, "optimizer", None) is None:
            raise ValueError("MagnitudePruning: compile the model with an optimizer first.")
        seen = _batches_seen(self.model.optimizer)
        courses = {}
        with self._scope():
            for target in self._targets:
                start = target.resume(seen)
                key = (id(target.schedule), *start)
                courses.setdefault(key, _Course(target.schedule, *start)).targets.append(target)
        self._courses = list(courses.values())

    def _begin_counting(self):
        self._seen = _batches_seen(self.model.optimizer)
        self._first_batch = None

    def _advance(self, seen):
        """Brings every schedule up to the batch count `seen`, and prunes what is due."""
        for course in self._courses:
            sparsity = course.due_sparsity(seen)
            if sparsity is not None:
                if keras.backend.backend() == "jax":
                    self.model.jax_state_sync()
                with self._scope():
                    for target in course.targets:
                        self._prune(target, sparsity)
                    course.note()

    def _prune(self, target, sparsity):
        kernel = keras.ops.convert_to_numpy(target.kernel.variable).astype("float32")
        if self.threshold == "std":
            sparsity = min(sparsity, masks.std_sparsity(kernel, self.quality, target.read_mask()))
        mask = masks.magnitude_mask(
            kernel, sparsity, self.granularity, self.block_size, target.kernel.output_axes
        )
        target.set_mask(mask)
        target.apply_mask()

    # What users see.

    @property
    def layer_sparsity(self):
        """Dict from the name of each pruned weight to the share of it that is masked."""
        return {t.kernel.name: 1 - t.kept / t.size for t in self._targets}

    @property
    def sparsity(self):
        """Share of all pruned weights that is masked."""
        return 1 - sum(t.kept for t in self._targets) / sum(t.size for t in self._targets)

    def _warn_if_cut_short(self, epoch):
        params = self.params or {}
        if self._warned or not params.get("steps") or not params.get("epochs"):
            return
        left = (params["epochs"] - epoch) * params["steps"]
        for course in self._courses:
            stop = _batches_seen(self.model.optimizer) - course.origin + left
            if course.schedule.end_step > stop:
                self._warned = True
                warnings.warn(
                    f"The pruning schedule ends at step {course.schedule.end_step}, but this fit() "
                    f"stops at step {stop} of it: the final sparsity is not reached unless you fit "
                    "further. Use a smaller `end_step`, or more epochs.",
                    stacklevel=2,
                )
                return


class _Target:
    """One weight under pruning: kernel, mask and schedule."""

    def __init__(self, kernel, schedule):
        self.kernel = kernel
        self.schedule = schedule
        self.size = self.kept = int(np.prod(kernel.variable.shape))

    def install(self):
        self.mask, new = self.kernel.install_mask()
        return new

    def resume(self, seen):
        """Reads `(origin, last)` from the mask's state, for an optimizer at batch count `seen`."""
        origin, last, mark = (int(v) for v in keras.ops.convert_to_numpy(self.mask.progress))
        self.mark = schedules.fingerprint(self.schedule)
        if mark != self.mark:
            origin, last = seen, -1
        elif seen < origin + last:
            # A new optimizer, which counts from zero again.
            origin = seen - last
        self.note(origin, last)
        self.kept = int(self.read_mask().sum())
        return origin, last

    def note(self, origin, last):
        self.mask.progress.assign(np.array([origin, last, self.mark], "int32"))

    def read_mask(self):
        return keras.ops.convert_to_numpy(self.mask.mask)

    def set_mask(self, mask):
        self.mask.set_mask(mask)
        self.kept = int(mask.sum())

    def apply_mask(self):
        variable = self.kernel.variable
        mask, kernel = map(keras.ops.convert_to_tensor, (self.mask.mask, variable))
        variable.assign(keras.ops.where(mask, kernel, 0))


class _Course:
    """How far weights that share a schedule and a start have come on it."""

    def __init__(self, schedule, origin, last):
        self.schedule = schedule
        self.origin = origin
        self.last = last
        self.targets = []

    def due_sparsity(self, seen):
        """Sparsity of the latest step not asked about yet at which pruning is due, or `None`."""
        sparsity = None
        step = seen - self.origin
        for one in range(self.last + 1, step + 1):
            due, value = self.schedule(one)
            sparsity = value if due else sparsity
        self.last = max(self.last, step)
        return sparsity

    def note(self):
        for target in self.targets:
            target.note(self.origin, self.last)


def _batches_seen(optimizer):
    # The public `iterations` rounds down to whole updates under gradient accumulation.
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return int(keras.ops.convert_to_numpy(inner._iterations))


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
