"""What a `Distiller` does before it computes a loss: features, and stages."""

import contextlib
import functools

import keras
from keras import ops, tree

from keras_compress import matching
from keras_compress.distillation.cache import check_cached
from keras_compress.distillation.cached_dataset import is_cached
from keras_compress.distillation.model_loss import Batch
from keras_compress.distillation.pairs import extractor, layer_pairs
from keras_compress.distillation.phases import (
    StageCallback,
    TrainableFlags,
    frozen_layers,
    make_phases,
)
from keras_compress.distillation.staged_optimizer import StagedOptimizer
from keras_compress.distillation.terms import OUTPUT, make_terms


class StagedDistiller(keras.distillation.Distiller):
    """Base of `kc.distillation.Distiller`: what a step runs, and the stages of `fit`.

    A subclass calls `_set_stages` once its models and losses are there.
    """

    # Keras's checks and extractors, where ours ask for less or give more.

    def _validate_models(self, teacher, student):
        # Checked before; the losses know whether outputs fit, and compute in one dtype.
        pass

    def _validate_distillation_loss_compatibility(self, teacher, student, distillation_loss):
        # First, since its errors name the nearest layers.
        layer_pairs(distillation_loss, teacher, student)
        super()._validate_distillation_loss_compatibility(teacher, student, distillation_loss)

    def _create_multi_feature_extractors(self):
        pairs = [
            pair
            for loss in self.distillation_losses
            for pair in layer_pairs(loss, self.teacher, self.student)
        ]
        extractors = []
        for side, model in enumerate((self.teacher, self.student)):
            names = [n for pair in pairs for n in tree.flatten(pair[side]) if n is not None]
            extractors.append(extractor(model, dict.fromkeys(names)) if names else None)
        self._teacher_feature_extractor, self._student_feature_extractor = extractors
        # Here, since Keras freezes the teacher after this: an error leaves it as it was.
        terms = make_terms(self.distillation_losses, self.teacher, self.student, *extractors)
        self.adapters = [adapter for term in terms for adapter in term.adapters]
        self._terms = terms

    @property
    def teacher_layers(self):
        """Names of the teacher's layers that losses look at, `"final_output"` for its output."""
        terms = [term for term in self._terms if not term.needs_models]
        names = [n for term in terms for pair in term.pairs for n in tree.flatten(pair[0])]
        return list(dict.fromkeys(name or OUTPUT for name in names))

    def extra_loss(self, batch):
        """A further part of the loss, for subclasses; none here.

        Args:
            batch: `kc.distillation.Batch`.

        Returns:
            Scalar tensor that is added as it is, or `None`.
        """

    @property
    def _has_extra_loss(self):
        return type(self).extra_loss is not StagedDistiller.extra_loss

    # What a step runs.

    def _sides(self, x, strict=True):
        """The teacher's and the student's inputs."""
        if is_cached(x):
            return x["student"], x["student"]
        if self.inputs_kind == "shared":
            return x, x
        if isinstance(x, dict) and set(x) == {"teacher", "student"}:
            return x["teacher"], x["student"]
        if strict or self.train_teacher or isinstance(x, dict):
            what = f"a dict with the keys {sorted(x)}" if isinstance(x, dict) else type(x).__name__
            raise ValueError(
                "Distiller: with inputs='paired', inputs are {'teacher': ..., 'student': ...}; got "
                f"{what}."
            )
        return None, x

    def _teacher_features(self, inputs, training=False):
        if self._teacher_feature_extractor is None:
            return {OUTPUT: self.teacher(inputs, training=training)}
        return self._teacher_feature_extractor(inputs, training=training)

    def _make_batch(self, x, y, y_pred, sample_weight, training):
        """What this step knows; teacher and student run only if they have not yet."""
        teacher_inputs, student_inputs = self._sides(x)
        student_features, teacher_features = self._run.take(y_pred)
        look_inside = self._student_feature_extractor is not None and self._phase.soft
        if look_inside and student_features is None:
            # Predictions that are not those of the last call.
            student_features = self._student_feature_extractor(student_inputs, training=training)
        student_features = {**(student_features or {}), OUTPUT: y_pred}
        if is_cached(x):
            teacher_features = x["teacher_outputs"]
        elif teacher_features is None and self._uses_teacher:
            teacher_features = self._teacher_features(teacher_inputs)
        batch = Batch(x, y, y_pred, sample_weight, training, teacher_inputs, student_inputs)
        batch.student_features = student_features
        if teacher_features is not None:
            batch.teacher_output = teacher_features.get(OUTPUT)
            batch.teacher_features = self.teacher_targets(teacher_features)
        batch.teacher = functools.partial(self.teacher, training=False)
        batch.student = functools.partial(self.student, training=False)
        if self._compile_loss is not None:
            batch.hard_loss = lambda labels, outputs: self._hard_loss(
                self._run.other_loss, labels, outputs, None, 1
            )[0]
        return batch

    @property
    def _uses_teacher(self):
        terms = [self._terms[place] for place, _ in self._phase.entries]
        soft = self._phase.soft and not all(term.needs_models for term in terms)
        return soft or self.train_teacher or self._has_extra_loss

    def teacher_targets(self, features):
        """What the losses see of the teacher's features: no gradient leads into it.

        Args:
            features: Dict from layer names to outputs.
        """
        return {
            name: tree.map_structure(ops.stop_gradient, value) for name, value in features.items()
        }

    # Stages.

    def _set_stages(self, plan, given):
        self._run = _Run()
        self._stages_given = given
        self._phases = make_phases(plan, self._terms, self.alpha, self.add_weight)
        # Part of the weights, so that a restored model is in the right stage.
        self._stage_variable = None
        if len(plan) > 1:
            self._stage_variable = self.add_weight(
                name="stage", shape=(), dtype="int32", initializer="zeros", trainable=False
            )
        for index in range(len(plan)):
            self._enter(index)
        self._enter(0)

    @property
    def stage(self):
        """Number of the stage whose losses are computed, from 0."""
        return self._run.stage

    @property
    def _phase(self):
        return self._phases[self._run.stage]

    def _begin_epoch(self, epoch, epochs):
        index, first = 0, 0
        for phase in self._phases[:-1]:
            if epoch < first + phase.stage.epochs:
                break
            first += phase.stage.epochs
            index += 1
        self._enter(index)
        self._phase.set_epoch(epoch - first, epochs - first)
        self.make_train_function()

    def _enter(self, index):
        run, phase = self._run, self._phases[index]
        all_used = self._has_extra_loss
        layers = frozen_layers(phase, self._terms, self.student, all_used)
        active = {id(a) for place, _ in phase.entries for a in self._terms[place].adapters}
        idle = [a for a in self.adapters if not phase.soft or id(a) not in active]
        frozen = {id(v) for layer in [*layers, *idle] for v in layer.variables}
        # What a layer before the guided one shares with a later one is trained.
        outside = {id(layer) for layer in layers}
        used = [x for x in matching.leaf_layers(self.student) if id(x) not in outside]
        frozen -= {id(v) for layer in used for v in layer.variables}
        optimizer = getattr(self, "optimizer", None)
        while optimizer is not None:
            if isinstance(optimizer, StagedOptimizer):
                optimizer.frozen = frozen
            optimizer = getattr(optimizer, "inner_optimizer", None)
        if run.stage != index or run.frozen != frozen:
            # They were compiled for another stage.
            self.train_function = self.test_function = None
        run.stage, run.layers, run.frozen = index, layers, frozen
        run.ever_frozen = run.ever_frozen or bool(frozen)
        if self._stage_variable is not None:
            self._stage_variable.assign(index)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        if self._stage_variable is not None:
            self._enter(int(ops.convert_to_numpy(self._stage_variable)))

    @contextlib.contextmanager
    def _frozen_layers(self):
        """Within, layers that the stage does not train keep their batch statistics."""
        layers = self._run.layers
        flags = TrainableFlags(layers)
        for layer in layers:
            layer.trainable = False
        try:
            yield
        finally:
            flags.restore()

    def fit(
        self, x=None, y=None, batch_size=None, epochs=None, verbose="auto", callbacks=None, **kwargs
    ):
        """Trains the student, as `keras.Model.fit`.

        Args:
            x: Inputs; with `inputs="paired"`, `{"teacher": ..., "student": ...}`. A dataset of
                `kc.distillation.TeacherCache` saves the teacher's forward passes.
            y: Labels.
            batch_size: As in Keras.
            epochs: Epochs in all; by default those of the stages together. The last stage goes on
                for what is more.
            verbose: As in Keras.
            callbacks: As in Keras. They see one fit, whatever the stages.
            **kwargs: The other arguments of `keras.Model.fit`.

        Returns:
            `keras.callbacks.History`.
        """
        if epochs is None:
            epochs = sum(phase.stage.epochs or 1 for phase in self._phases)
        for data in (x, kwargs.get("validation_data")):
            check_cached(data, self)
        stages = StageCallback()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(stages)
            stages.set_model(self)
            stages.set_params({"epochs": epochs})
        else:
            callbacks = [stages, *tree.flatten(callbacks or [])]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)


class _Run:
    """Where a `Distiller` is, and what `call` hands to `compute_loss` of the same step."""

    def __init__(self):
        self.stage = None
        self.layers = []
        self.frozen = frozenset()
        self.ever_frozen = False
        self.other_loss = None
        self._outputs = self._student = self._teacher = None

    def put(self, outputs, student, teacher):
        self._outputs, self._student, self._teacher = outputs, student, teacher

    def take(self, outputs):
        """Features of student and teacher, if the outputs are those of the last call."""
        last, student, teacher = self._outputs, self._student, self._teacher
        self.put(None, None, None)
        return (student, teacher) if last is outputs else (None, None)
