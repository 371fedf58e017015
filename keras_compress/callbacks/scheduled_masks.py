"""`ScheduledMasks`: base of callbacks that choose masks when a schedule says so."""

import warnings

import keras
import numpy as np

from keras_compress import validation
from keras_compress.callbacks.mask_callback import MaskCallback
from keras_compress.pruning import schedules
from keras_compress.pruning.pruning_mask import carry_masks


class ScheduledMasks(MaskCallback):
    """Brings schedules up to the training step, whatever `fit` has been through before.

    A subclass calls `install` in `set_model`, and writes `prune`.
    """

    def __init__(self):
        super().__init__()
        self.targets = []
        self._courses = []
        self._warned = False

    def install(self, targets):
        """Puts masks on weights.

        Args:
            targets: List of `Target`.
        """
        self.targets = targets
        with self.scope():
            new = [target.install() for target in targets]
        self.pruned = [(target.kernel, target.mask) for target in targets]
        if any(new):
            # A step compiled earlier has the old constraints in it.
            self.model.train_function = None
        carry_masks(self.model)
        self._courses = []

    def prune(self, targets, sparsity):
        """Chooses the masks of targets whose schedules ask for a sparsity now."""
        raise NotImplementedError

    def started(self):
        """Called when the state of all masks is known, before the first batch."""

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
        with self.scope():
            for target in self.targets:
                target.apply_mask()

    def _start(self):
        if getattr(self.model, "optimizer", None) is None:
            raise ValueError(f"{validation.prefix(self)}compile the model with an optimizer first.")
        seen = _batches_seen(self.model.optimizer)
        courses = {}
        with self.scope():
            for target in self.targets:
                start = target.resume(seen)
                key = (id(target.schedule), *start)
                courses.setdefault(key, Course(target.schedule, *start)).targets.append(target)
        self._courses = list(courses.values())
        self.started()

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
                with self.scope():
                    self.prune(course.targets, sparsity)
                    course.note()

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

    @property
    def layer_sparsity(self):
        """Dict from the name of each pruned weight to the share of it that is masked."""
        return {t.kernel.name: 1 - t.kept / t.size for t in self.targets}

    @property
    def sparsity(self):
        """Share of all pruned weights that is masked."""
        return 1 - sum(t.kept for t in self.targets) / sum(t.size for t in self.targets)


class Target:
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
        return self.mask.read_mask()

    def set_mask(self, mask):
        self.mask.set_mask(mask)
        self.kept = int(mask.sum())

    def apply_mask(self):
        variable = self.kernel.variable
        mask, kernel = map(keras.ops.convert_to_tensor, (self.mask.mask, variable))
        variable.assign(keras.ops.where(mask > 0, kernel, 0))


class Course:
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
