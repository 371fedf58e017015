"""`prune_and_finetune`: a little pruning, a little training, and again."""

import json
import os
import pathlib
import zlib

import keras
import numpy as np

from keras_compress import validation
from keras_compress.budget import Budget
from keras_compress.convert import check_graph, rebuild
from keras_compress.distillation import Distiller
from keras_compress.files import write_atomically
from keras_compress.pruning import criteria
from keras_compress.pruning.choice import select
from keras_compress.pruning.costs import cost_of
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.pruning.surgery import ChannelGraph, cut


def prune_and_finetune(
    model,
    data,
    criterion="l1",
    target=0.5,
    steps=5,
    epochs=1,
    *,
    distill=True,
    teacher=None,
    distillation_losses=None,
    alpha=0.5,
    temperature=None,
    validation_data=None,
    callbacks=None,
    layers=None,
    scope="global",
    min_keep=1,
    round_to=1,
    through_normalization=False,
    loss=None,
    batch_size=32,
    checkpoint=None,
    verbose=1,
):
    """Removes channels of a compiled model in several steps, and trains what is left after each.

    Each step scores the channels anew, cuts out its part of those that `target` takes, and trains
    for some epochs with the model's compiled loss and a fresh copy of its optimizer; by default
    also on the outputs of the model as it was (`kc.distillation.Distiller`).

    Args:
        model: A built and compiled Sequential or functional model. It is not changed.
        data: What `fit` takes: `(x, y)`, `(x, y, sample_weight)`, or a dataset of batches. The
            criterion sees it, too.
        criterion: An object of `kc.pruning.criteria` that scores channels, or its name.
        target: Share of the channels to remove, in [0, 1), or a `kc.pruning.Budget`, such as
            `Budget(macs=0.5)`. It is met after the last step; before, channels (or the cost) fall
            by equal parts.
        steps: Number of steps.
        epochs: Epochs of training after each step.
        distill: Whether a teacher is imitated. By default on its soft targets, which are for
            classifiers: for others give `distillation_losses`, or `False`.
        teacher: The teacher; `None`: the unpruned model. One without a graph is used as it is, and
            frozen by Keras.
        distillation_losses: See `kc.distillation.Distiller`.
        alpha: See `kc.distillation.Distiller`.
        temperature: See `kc.distillation.Distiller`.
        validation_data: As in `fit`.
        callbacks: List of Keras callbacks for each step's `fit`.
        layers: See `kc.pruning.prune_channels`.
        scope: See `kc.pruning.select`.
        min_keep: See `kc.pruning.select`.
        round_to: See `kc.pruning.select`.
        through_normalization: See `kc.pruning.select`.
        loss: For criteria that look at gradients; `None` for the compiled loss.
        batch_size: Rows of arrays at a time.
        checkpoint: A folder, or `None`. A run that was interrupted goes on where it stopped (with
            the last epoch that it finished) when it is called again with the same arguments and
            folder; one that is finished gives its result at once. Losses and metrics of your own
            must be registered with Keras.
        verbose: 0 for silence, 1 for one progress bar over all epochs.

    Returns:
        A smaller model of the same layers and names, compiled like `model`. Its `history.history`
        has all epochs: what `fit` logs, `step` (from 1), and `channels_removed` so far.

    Raises:
        ValueError: if the model is not compiled, has no graph or is under a pruning mask, the
            target cannot be met, data is missing or does not fit, or the folder holds another run.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((16,)), keras.layers.Dense(12, activation="relu"), keras.layers.Dense(3)
    ... ])
    >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.rand(64, 16), np.arange(64) % 3
    >>> small = kc.pruning.prune_and_finetune(
    ...     model, (x, y), "l1", target=0.5, steps=3, epochs=2, verbose=0
    ... )
    >>> small.layers[0].units, small.history.history["channels_removed"]
    (6, [2, 2, 4, 4, 6, 6])
    """
    name = "prune_and_finetune"
    check_graph(model, name)
    refuse_masked(model, name)
    if not model.compiled:
        raise ValueError(
            f"{name}: model '{model.name}' is not compiled; it is trained with its own loss and "
            "optimizer: call model.compile(optimizer, loss) first."
        )
    if not distill and teacher is not None:
        raise ValueError(f"{name}: a `teacher` goes with distill=True; got distill={distill!r}.")
    criterion = criteria.get(criterion)
    if criterion.granularity == "weight":
        raise ValueError(
            f"{name}: {type(criterion).__name__} scores single weights, and this removes channels; "
            "see kc.pruning.prune_weights and kc.callbacks.MagnitudePruning."
        )
    steps = validation.positive_int("steps", steps, name)
    epochs = validation.positive_int("epochs", epochs, name)
    batch_size = validation.positive_int("batch_size", batch_size, name)

    def scored(student):
        graph = ChannelGraph(student)
        inputs = data[:2] if isinstance(data, tuple) else data
        return graph, criterion(graph, layers, inputs, loss, batch_size)

    def chosen(graph, scores, goal):
        return select(graph, scores, goal, scope, min_keep, round_to, through_normalization)

    plan = _plan(target, steps, *scored(model), chosen)
    settings = [
        type(criterion).__name__, repr(target), steps, epochs, distill, repr(layers), scope,
        min_keep, round_to, alpha, temperature, batch_size,
    ]  # fmt: skip
    run = _Checkpoint(checkpoint, model, settings)
    teacher = _teacher(model if teacher is None else teacher) if distill else None
    bar = keras.utils.Progbar(steps * epochs, verbose=verbose, unit_name="epoch")
    bar.update(len(run.logs))
    student = run.load() or _copy(model)
    for step in range(run.step, steps):
        if not run.pruned:
            graph, scores = scored(student)
            kept = chosen(graph, scores, plan(graph, step, run.removed))
            run.removed += int(np.count_nonzero(~kept))
            student = cut(graph, kept)
            run.save(student, step, pruned=True)
        trainer = student
        if teacher is not None:
            trainer = Distiller(
                teacher, student, distillation_losses, alpha=alpha, temperature=temperature
            )
            trainer.compile_from_config(student.get_compile_config())
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        trainer.fit(
            x,
            y,
            sample_weight=weights,
            batch_size=batch_size if y is not None else None,
            epochs=epochs,
            validation_data=validation_data,
            callbacks=[*run.callbacks(step, bar), *(callbacks or ())],
            verbose=0,
        )
        run.save(student, step + 1, pruned=False)
    student.history = run.history()
    return student


def _copy(model):
    """A copy of a compiled model, compiled alike."""
    copy = rebuild(model, {})
    copy.compile_from_config(model.get_compile_config())
    return copy


def _teacher(model):
    """A copy, since Keras freezes teachers."""
    graph = isinstance(model, keras.Sequential) or hasattr(model, "operations")
    return rebuild(model, {}) if graph else model


def _plan(target, steps, graph, scores, chosen):
    """A function from a graph, a step and how many channels are gone to that step's target."""
    # Raises before any training if the whole target cannot be met.
    total = int(np.count_nonzero(~chosen(graph, scores, target)))
    if not isinstance(target, Budget):
        return lambda graph, step, gone: max(round(total * (step + 1) / steps) - gone, 0)
    whole = cost_of(target.what, graph)(np.ones(graph.count, bool))

    def budget(graph, step, gone):
        share = 1 - (step + 1) / steps * (1 - target.share)
        now = cost_of(target.what, graph)(np.ones(graph.count, bool))
        return Budget(**{target.what: min(share * whole / now, 1.0)})

    return budget


class _Checkpoint:
    """Where a run is, in memory and, if there is a folder, on disk.

    Attributes:
        step: The step that is under way.
        pruned: Whether its channels are cut out already.
        removed: Channels that are gone.
        logs: List of `[step, epoch, logs]`.
    """

    def __init__(self, folder, model, settings):
        self.folder = None if folder is None else pathlib.Path(folder)
        self.step, self.pruned, self.removed, self.logs = 0, False, 0, []
        self._file = None
        if self.folder is None:
            return
        self._run = _fingerprint(model, settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self.folder / "state.json"
        if not state.exists():
            return
        state = json.loads(state.read_text())
        if state.pop("run") != self._run:
            raise ValueError(
                f"prune_and_finetune: checkpoint={str(folder)!r} holds another run, of another "
                "model or with other arguments; give a new folder, or delete that one."
            )
        self._file = state.pop("file")
        vars(self).update(state)

    def load(self):
        """The model of the last save, or `None`."""
        return self._file and keras.models.load_model(self.folder / self._file)

    def save(self, model, step, pruned):
        self.step, self.pruned = step, pruned
        if self.folder is None:
            return
        before = self._file
        self._file = f"step_{step}_{'pruned' if pruned else 'trained'}.keras"
        temporary = self.folder / f"part_{self._file}"
        model.save(temporary)
        os.replace(temporary, self.folder / self._file)
        self._save_state()
        if before not in (None, self._file):
            (self.folder / before).unlink(missing_ok=True)

    def _save_state(self):
        state = {name: getattr(self, name) for name in ("step", "pruned", "removed", "logs")}
        state = {"run": self._run, "file": self._file, **state}
        write_atomically(self.folder / "state.json", json.dumps(state).encode())

    def callbacks(self, step, bar):
        """Callbacks of a step's training: one that can resume it, and one that notes its logs."""
        backup = []
        if self.folder is not None:
            backup = [keras.callbacks.BackupAndRestore(self.folder / f"epochs_of_step_{step}")]

        def note(epoch, logs):
            # An epoch that is run again takes the place of what an interruption has left.
            self.logs = [entry for entry in self.logs if (entry[0], entry[1]) < (step, epoch)]
            logs = {key: float(value) for key, value in logs.items()}
            logs["channels_removed"] = self.removed
            self.logs.append([step, epoch, logs])
            if self.folder is not None:
                self._save_state()
            bar.stateful_metrics = set(logs)
            bar.update(len(self.logs), list(logs.items()))

        # Before the backup: an epoch that is not run again must be noted.
        return [keras.callbacks.LambdaCallback(on_epoch_end=note), *backup]

    def history(self):
        """A Keras `History` of all epochs."""
        history = keras.callbacks.History()
        history.epoch = list(range(len(self.logs)))
        names = dict.fromkeys(name for *_, logs in self.logs for name in logs)
        history.history = {
            "step": [step + 1 for step, *_ in self.logs],
            **{name: [logs.get(name, np.nan) for *_, logs in self.logs] for name in names},
        }
        return history


def _fingerprint(model, settings):
    """A number that tells runs apart: their model, its weights, and the settings."""
    # Not by names, which Keras counts up within a process.
    shapes = [tuple(weight.shape) for weight in model.weights]
    mark = zlib.crc32(json.dumps([settings, shapes]).encode())
    for weight in model.weights:
        mark = zlib.crc32(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes(), mark)
    return mark
