"""Distiller: trains a student on a teacher's outputs and features."""

import keras
from keras import ops, tree

from keras_compress import validation
from keras_compress.distillation import arguments
from keras_compress.distillation.ensemble import Ensemble
from keras_compress.distillation.labels import check_unlabeled, labelled
from keras_compress.distillation.phases import TrainableFlags
from keras_compress.distillation.stage import Stage
from keras_compress.distillation.staged_distiller import StagedDistiller
from keras_compress.distillation.staged_optimizer import StagedOptimizer
from keras_compress.distillation.terms import OUTPUT, Mean


@keras.saving.register_keras_serializable(package="keras_compress")
class Distiller(StagedDistiller):
    """Trains a student on the labels and on a teacher, with `compile` and `fit`.

    The loss is `alpha * soft + (1 - alpha) * hard`, plus the student's regularizers: *hard* is the
    loss given to `compile`, *soft* the weighted sum of the distillation losses. With Hinton's, the
    soft targets have their factor `temperature^2` in them, so that `alpha` means the same at every
    temperature. `alpha=0` trains as the student alone would.

    A `keras.distillation.Distiller`: every loss of `keras.distillation` works, and what is said of
    it there holds. In addition,

    - teacher and student run once a step, whatever layers the losses look at;
    - layers are named by globs too, and features of different shapes get an adapter
      (`kc.distillation.FeatureLoss`);
    - models may give logits or probabilities, in different dtypes, and, with feature losses only,
      have different outputs;
    - sample and class weights, loss weights and regularizers act as in any other model (weights of
      samples on the hard loss only);
    - training goes in stages, with losses of their own (`kc.distillation.Stage`);
    - losses may call the models themselves (`kc.distillation.ModelLoss`);
    - there may be several teachers, a teacher that trains too, samples without a label, other
      inputs for the teacher, and teacher outputs from disk (`kc.distillation.cache_teacher`);
    - a `.keras` file brings it back compiled, `BackupAndRestore` in the stage it was in.

    `fit` logs `student_loss` (hard), `distillation_loss` (soft) and, if there are several
    distillation losses, each one unweighted: `logits_distillation_loss`, `hint_loss` and so on; NaN
    in the stages that do without it.

    The teacher runs in inference mode and is not changed, batch statistics included. It is frozen
    (`teacher.trainable` becomes `False`), as by Keras, and stays so; set it to `True` to train the
    teacher again. The trained student is `distiller.student`, the same object that was given.

    Callbacks that compress (`kc.callbacks.MagnitudePruning`) act on the student.

    With `alpha=1` and losses on layers inside the student only (hints), later layers of the student
    are left exactly as they are.

    Args:
        teacher: A trained model. Losses on layers need a Sequential or functional one. A list of
            models: their `kc.distillation.Ensemble`.
        student: The model to train, built.
        distillation_losses: A `keras.distillation.DistillationLoss` or a list of them. By default
            Hinton's soft targets (`kc.distillation.LogitsDistillation`), told from the models
            whether they give logits or probabilities.
        distillation_loss_weights: One number for each loss; by default all 1.
        student_loss_weight: `1 - alpha`, Keras's argument. Give one of the two.
        temperature: Temperature of the default loss, 4 if not given.
        alpha: Weight of the distillation losses, 0 to 1; 0.5 if not given. With 1, no labels and
            no `loss` are needed.
        stages: List of `kc.distillation.Stage`, in place of the losses and their weights; `alpha`
            is then that of stages which do not say.
        inputs: `"shared"`, or `"paired"`: the data are `{"teacher": ..., "student": ...}`, such as
            two modalities, and each model sees its own only.
        unlabeled: Label that marks samples without one, such as -1, or NaN in regression: they have
            no hard loss, and no part in its mean or in metrics. `None`: all have labels.
        train_teacher: Whether the teacher trains too, on `teacher_loss_weight` times its own hard
            loss (logged as `teacher_loss`) and its regularizers, in training mode. The gradient of
            the distillation losses goes to the student alone. It may share layers with the student.
        teacher_loss_weight: See `train_teacher`.
        name: Name of the model.
        **kwargs: `dtype`, as in Keras; by default the student's, so that its mixed precision gets
            loss scaling.

    Raises:
        ValueError: if the models are not built, share weights, or do not fit together; for an
            empty list of losses, unknown layer names, and numbers out of range.

    Reference:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> def net(units):
    ...     return keras.Sequential([
    ...         keras.Input((16,)),
    ...         keras.layers.Dense(units, activation="relu", name="hidden"),
    ...         keras.layers.Dense(3),
    ...     ])
    >>> teacher, student = net(64), net(8)
    >>> distiller = kc.distillation.Distiller(
    ...     teacher,
    ...     student,
    ...     [kc.distillation.LogitsDistillation(4.0), kc.distillation.Hint("hidden", "hidden")],
    ...     distillation_loss_weights=[1.0, 0.01],
    ...     alpha=0.9,
    ... )
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.ones((32, 16)), np.zeros((32,))
    >>> history = distiller.fit(x, y, verbose=0)
    >>> [name for name in sorted(history.history) if name.endswith("_loss")]
    ['distillation_loss', 'hint_loss', 'logits_distillation_loss', 'student_loss', 'total_loss']
    >>> distiller.student is student
    True
    """

    def __init__(
        self,
        teacher,
        student,
        distillation_losses=None,
        distillation_loss_weights=None,
        student_loss_weight=None,
        *,
        temperature=None,
        alpha=None,
        stages=None,
        inputs="shared",
        unlabeled=None,
        train_teacher=False,
        teacher_loss_weight=1.0,
        name="distiller",
        **kwargs,
    ):
        teacher = _as_teacher(teacher)
        arguments.check_models(teacher, student, may_share=train_teacher)
        validation.one_of("inputs", inputs, ("shared", "paired"), owner=self)
        if inputs == "shared":
            self._validate_input_compatibility(teacher, student)
        alpha = arguments.check_alpha(alpha, student_loss_weight, self)
        if stages is None:
            losses, weights = distillation_losses, distillation_loss_weights
            if losses is None:
                temperature = 4.0 if temperature is None else temperature
                losses = arguments.soft_targets(temperature, teacher, student)
            elif temperature is not None:
                raise ValueError(
                    "Distiller: `temperature` belongs to the default loss; with "
                    "`distillation_losses` give it there, LogitsDistillation(temperature=...); got "
                    f"temperature={temperature!r}."
                )
            losses = arguments.check_losses("distillation_losses", losses, self)
            weights = arguments.check_weights(weights, losses, self)
            plan = [Stage(losses, weights, alpha=alpha)]
        else:
            plan = arguments.check_stages(
                stages, distillation_losses, distillation_loss_weights, temperature, Stage
            )
            losses = list({id(loss): loss for stage in plan for loss in stage.losses}.values())
            weights = [1.0] * len(losses)
        # Autocast would round the inputs before the student's own layers see them.
        kwargs = {"dtype": student.dtype_policy, "autocast": False, **kwargs}
        flags = TrainableFlags([teacher])
        super().__init__(teacher, student, losses, weights, 1.0 - alpha, name=name, **kwargs)
        if train_teacher:
            flags.restore()
            if not teacher.trainable_variables:
                raise ValueError(
                    f"Distiller: train_teacher=True, but teacher '{teacher.name}' has no weights "
                    "to train; set teacher.trainable = True if it was frozen."
                )
        self.alpha = alpha
        self.inputs_kind = inputs
        self.unlabeled = check_unlabeled(unlabeled, self)
        self.train_teacher = bool(train_teacher)
        self.teacher_loss_weight = validation.number(
            "teacher_loss_weight", teacher_loss_weight, 0, owner=self
        )
        self._set_stages(plan, given=stages is not None)
        self.seed_generators = [
            loss.seed_generator for loss in losses if getattr(loss, "seed_generator", None)
        ]
        self.loss_trackers = []
        # With a single loss, it would only repeat `distillation_loss`.
        if len(self._terms) > 1:
            self.loss_trackers = [Mean(name=term.name) for term in self._terms]
        if train_teacher:
            self.teacher_loss_tracker = keras.metrics.Mean(name="teacher_loss")
        self.built = True

    # Training.

    def compile(self, optimizer="adam", loss=None, metrics=None, **kwargs):
        """Configures training, as in `keras.Model`.

        Args:
            optimizer: Optimizer of the student.
            loss: The hard loss: any loss of Keras, or a structure of them for several outputs.
            metrics: Metrics of the student's outputs.
            **kwargs: The other arguments of `keras.Model.compile`.

        Raises:
            ValueError: if labels are used (`alpha` below 1) and there is no `loss`.
        """
        if loss is None and (self.train_teacher or any(phase.hard for phase in self._phases)):
            raise ValueError(
                "Distiller: compile() needs `loss`, the loss on the labels, with "
                f"alpha={self.alpha}; got loss=None. With alpha=1 it is not used."
            )
        if self._run.ever_frozen and not isinstance(optimizer, StagedOptimizer):
            optimizer = StagedOptimizer(optimizer)
        # Past Keras's Distiller, which hides the loss from the trainer: then samples, classes and
        # outputs could not be weighted, nor could a `.keras` file be compiled on loading.
        super(keras.distillation.Distiller, self).compile(
            optimizer=optimizer, loss=loss, metrics=metrics, **kwargs
        )
        # For outputs that are not logged: the teacher's, and those that losses on models ask for.
        if self._compile_loss is not None:
            self._run.other_loss = type(self._compile_loss)(loss, kwargs.get("loss_weights"))
        self._enter(self._run.stage)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def call(self, inputs, training=None, **kwargs):
        """Outputs of the student."""
        teacher_inputs, student_inputs = self._sides(inputs, strict=False)
        student = teacher = None
        with self._frozen_layers():
            if self._student_feature_extractor is None or not self._phase.soft:
                outputs = self.student(student_inputs, training=training, **kwargs)
            else:
                student = self._student_feature_extractor(
                    student_inputs, training=training, **kwargs
                )
                outputs = student[OUTPUT]
        if self.train_teacher and training:
            # Here, so that the losses that its layers add are among those of this model.
            teacher = self._teacher_features(teacher_inputs, training=True)
        if student is not None or teacher is not None:
            self._run.put(outputs, student, teacher)
        return outputs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of a batch: `alpha * soft + (1 - alpha) * hard + regularizers`.

        Args:
            x: Inputs.
            y: Labels; `None` only where they are not used.
            y_pred: Outputs of the student; by default it is run.
            sample_weight: Weights of the samples in the hard loss.
            training: Whether the student runs in training mode.

        Returns:
            Scalar tensor.
        """
        if y_pred is None:
            y_pred = self(x, training=training)
        phase = self._phase
        size = ops.shape(next(v for v in tree.flatten(x) if v is not None))[0]
        # Before the teacher runs: its layers may add losses of their own.
        parts = [ops.sum(loss) for loss in self.losses]
        batch = self._make_batch(x, y, y_pred, sample_weight, training)
        hard = soft = 0.0
        labels = size
        if phase.hard:
            if y is None:
                raise ValueError(
                    f"Distiller: labels are needed with alpha={self.alpha}; give `y`, or use "
                    "alpha=1."
                )
            hard, labels = self._hard_loss(self._compile_loss, y, y_pred, sample_weight, size)
            parts.append((1.0 - phase.alpha) * hard)
        if phase.soft:
            soft = self._soft_loss(batch, size)
            parts.append(phase.alpha * soft)
        if self.train_teacher:
            output = batch.teacher_output
            loss, count = self._hard_loss(self._run.other_loss, y, output, sample_weight, size)
            self.teacher_loss_tracker.update_state(loss, count)
            parts.append(self.teacher_loss_weight * loss)
        extra = self.extra_loss(batch)
        if extra is not None:
            parts.append(extra)
        total = sum(parts[1:], parts[0])
        self.student_loss_tracker.update_state(hard, labels)
        self.distillation_loss_tracker.update_state(soft, size)
        self.total_loss_tracker.update_state(total, size)
        return total

    def _hard_loss(self, loss, y, y_pred, sample_weight, size):
        """The loss on the labels, and how many there are."""
        if self.unlabeled is None:
            return loss(y, y_pred, sample_weight), size
        y, y_pred, count = labelled(y, y_pred, self.unlabeled)
        return loss(y, y_pred, sample_weight), count

    def _soft_loss(self, batch, size):
        total = 0.0
        for place, weight in self._phase.entries:
            value = self._terms[place](batch)
            if self.loss_trackers:
                self.loss_trackers[place].update_state(value, size)
            total = total + weight * value
        return total

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self.unlabeled is not None and y is not None:
            y, y_pred, _ = labelled(y, y_pred, self.unlabeled)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def finalize(self):
        """The trained student, the same object as `distiller.student`.

        Nothing has to be taken off: adapters belong to the `Distiller`, never to the student.
        """
        return self.student

    def get_config(self):
        config = super().get_config()
        del config["student_loss_weight"]
        if self._stages_given:
            places = {id(loss): place for place, loss in enumerate(self.distillation_losses)}
            del config["distillation_loss_weights"]
            config["stages"] = [
                {
                    **phase.stage.get_config(),
                    "losses": [places[id(loss)] for loss in phase.stage.losses],
                }
                for phase in self._phases
            ]
        return {
            **config,
            "alpha": self.alpha,
            "inputs": self.inputs_kind,
            "unlabeled": self.unlabeled,
            "train_teacher": self.train_teacher,
            "teacher_loss_weight": self.teacher_loss_weight,
        }

    @classmethod
    def from_config(cls, config):
        restore = keras.saving.deserialize_keras_object
        config = dict(config)
        config.update({side: restore(config[side]) for side in ("teacher", "student")})
        losses = [restore(loss) for loss in config.pop("distillation_losses")]
        if "stages" in config:
            config["stages"] = [
                Stage(**{**stage, "losses": [losses[i] for i in stage["losses"]] or None})
                for stage in config["stages"]
            ]
        else:
            config["distillation_losses"] = losses
        return cls(**config)


def _as_teacher(teacher):
    return Ensemble(teacher) if isinstance(teacher, (list, tuple)) else teacher
