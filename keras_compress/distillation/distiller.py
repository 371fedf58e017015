"""Distiller: trains a student on a teacher's outputs and features."""

import dataclasses
import re
import warnings

import keras
from keras import ops, tree

from keras_compress import validation
from keras_compress.distillation.feature_loss import FeatureLoss
from keras_compress.distillation.logits_distillation import LogitsDistillation, output_activations
from keras_compress.distillation.pairs import layer_outputs, layer_pairs


@keras.saving.register_keras_serializable(package="keras_compress")
class Distiller(keras.distillation.Distiller):
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
    - a `.keras` file brings it back compiled.

    `fit` logs `student_loss` (hard), `distillation_loss` (soft) and, if there are several
    distillation losses, each one unweighted: `logits_distillation_loss`, `hint_loss` and so on.

    The teacher runs in inference mode and is not changed, batch statistics included. It is frozen
    (`teacher.trainable` becomes `False`), as by Keras, and stays so; set it to `True` to train the
    teacher again. The trained student is `distiller.student`, the same object that was given.

    Callbacks that compress (`kc.callbacks.MagnitudePruning`) act on the student.

    Args:
        teacher: A trained model. Losses on layers need a Sequential or functional one.
        student: The model to train, built.
        distillation_losses: A `keras.distillation.DistillationLoss` or a list of them. By default
            Hinton's soft targets (`kc.distillation.LogitsDistillation`), told from the models
            whether they give logits or probabilities.
        distillation_loss_weights: One number for each loss; by default all 1.
        student_loss_weight: `1 - alpha`, Keras's argument. Give one of the two.
        temperature: Temperature of the default loss, 4 if not given.
        alpha: Weight of the distillation losses, 0 to 1; 0.5 if not given. With 1, no labels and
            no `loss` are needed.
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
        name="distiller",
        **kwargs,
    ):
        self._check_models(teacher, student)
        alpha = self._check_alpha(alpha, student_loss_weight)
        losses = self._check_losses(distillation_losses, temperature, teacher, student)
        weights = self._check_weights(distillation_loss_weights, losses)
        # Autocast would round the inputs before the student's own layers see them.
        kwargs = {"dtype": student.dtype_policy, "autocast": False, **kwargs}
        super().__init__(teacher, student, losses, weights, 1.0 - alpha, name=name, **kwargs)
        self.alpha = alpha
        self.loss_trackers = self._make_trackers()
        self._forward = _Forward()
        self.built = True

    # Checks of the arguments.

    def _check_models(self, teacher, student):
        for side, model in (("teacher", teacher), ("student", student)):
            if not isinstance(model, keras.Model):
                raise ValueError(
                    f"Distiller: `{side}` must be a keras.Model; got {side}={model!r}."
                )
            if not model.built:
                raise ValueError(
                    f"Distiller: {side} '{model.name}' is not built; give it a keras.Input or call "
                    "it on a batch first."
                )
        frozen = {id(variable) for variable in teacher.variables}
        shared = [v.path for v in student.variables if id(v) in frozen]
        if shared:
            raise ValueError(
                f"Distiller: student '{student.name}' shares weights with teacher "
                f"'{teacher.name}' ({', '.join(shared[:3])}), and the teacher is frozen; use "
                "keras.models.clone_model() and set_weights() to copy layers."
            )

    def _check_alpha(self, alpha, student_loss_weight):
        if alpha is not None and student_loss_weight is not None:
            raise ValueError(
                "Distiller: `student_loss_weight` is 1 - alpha, give one of the two; got "
                f"alpha={alpha!r}, student_loss_weight={student_loss_weight!r}."
            )
        if student_loss_weight is not None:
            return 1.0 - validation.number(
                "student_loss_weight", student_loss_weight, 0, 1, owner=self
            )
        return validation.number("alpha", 0.5 if alpha is None else alpha, 0, 1, owner=self)

    def _check_losses(self, losses, temperature, teacher, student):
        if losses is None:
            return [_soft_targets(4.0 if temperature is None else temperature, teacher, student)]
        if temperature is not None:
            raise ValueError(
                "Distiller: `temperature` belongs to the default loss; with `distillation_losses` "
                "give it there, LogitsDistillation(temperature=...); got "
                f"temperature={temperature!r}."
            )
        losses = list(losses) if isinstance(losses, (list, tuple)) else [losses]
        wrong = [x for x in losses if not isinstance(x, keras.distillation.DistillationLoss)]
        if wrong or not losses:
            raise ValueError(
                "Distiller: `distillation_losses` must be a keras.distillation.DistillationLoss or "
                "a list of at least one, or None for Hinton's soft targets; got "
                f"distillation_losses={wrong or losses!r}."
            )
        for loss in losses:
            if type(loss) is keras.distillation.LogitsDistillation and any(
                part is keras.losses.kl_divergence for part in tree.flatten(loss.loss)
            ):
                warnings.warn(
                    "keras.distillation.LogitsDistillation(loss='kl_divergence') compares raw "
                    "logits, without softmax, as of Keras 3.15; use kc.distillation."
                    "LogitsDistillation, or loss=keras.losses.KLDivergence().",
                    stacklevel=3,
                )
        return losses

    def _check_weights(self, weights, losses):
        if weights is None:
            return [1.0] * len(losses)
        weights = list(weights) if isinstance(weights, (list, tuple)) else [weights]
        if len(weights) != len(losses):
            raise ValueError(
                "Distiller: `distillation_loss_weights` must have one number for each of the "
                f"{len(losses)} distillation losses; got distillation_loss_weights={weights!r}."
            )
        name = "distillation_loss_weights"
        return [validation.number(f"{name}[{i}]", w, 0, owner=self) for i, w in enumerate(weights)]

    # Keras's checks and extractors, where ours ask for less or give more.

    def _validate_output_compatibility(self, teacher, student):
        # The losses know: features may be compared between models with different outputs.
        pass

    def _validate_dtype_compatibility(self, teacher, student):
        # Every loss computes in one dtype; a float32 teacher serves a mixed-precision student.
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
        teacher, student = (
            list(dict.fromkeys(name for name in side if name)) for side in zip(*pairs, strict=True)
        )
        self._teacher_feature_extractor = self._create_feature_extractor(self.teacher, teacher)
        self._student_feature_extractor = self._create_feature_extractor(self.student, student)
        # Here, since Keras freezes the teacher after this: an error leaves it as it was.
        self._make_terms()

    def _create_feature_extractor(self, model, layer_names):
        if not layer_names:
            return None
        tensors = layer_outputs(model)
        sequential = isinstance(model, keras.Sequential)
        outputs = {"final_output": model.outputs[0] if sequential else model.output}
        for name in layer_names:
            found = tensors[id(model.get_layer(name))]
            if len(found) > 1:
                raise ValueError(
                    f"Distiller: layer '{name}' of '{model.name}' runs {len(found)} times a step, "
                    "so that its output is ambiguous; choose another one."
                )
            outputs[name] = found[0]
        return keras.Model(
            model.inputs[0] if sequential else model.input,
            outputs,
            name=f"{model.name}_multi_feature_extractor",
        )

    def _make_terms(self):
        terms, adapters = [], []
        for loss, weight in zip(
            self.distillation_losses, self.distillation_loss_weights, strict=True
        ):
            pairs = []
            for names in layer_pairs(loss, self.teacher, self.student):
                adapter = self._make_adapter(loss, *names)
                adapters += [] if adapter is None else [adapter]
                pairs.append((*names, adapter))
            terms.append(_Term(loss, weight, pairs))
        self.adapters = adapters
        self._terms = terms

    def _make_adapter(self, loss, teacher_name, student_name):
        if not isinstance(loss, FeatureLoss):
            return None
        shapes = [
            _shape(self.teacher, self._teacher_feature_extractor, teacher_name),
            _shape(self.student, self._student_feature_extractor, student_name),
        ]
        if None in shapes:
            raise ValueError(
                f"Distiller: {type(loss).__name__} compares one tensor of known shape on each "
                f"side; teacher layer {teacher_name!r} and student layer {student_name!r} (None: "
                "the output) do not both give that. Name layers of Sequential or functional models."
            )
        return loss.make_adapter(*shapes)

    def _make_trackers(self):
        if len(self._terms) == 1:
            # It would only repeat `distillation_loss`.
            return []
        trackers, taken = [], {"loss", "student_loss", "distillation_loss", "total_loss"}
        for term in self._terms:
            words = re.sub(r"(?<!^)(?=[A-Z])", "_", type(term.loss).__name__).lower()
            name = stem = f"{words.removesuffix('_loss')}_loss"
            count = 1
            while name in taken:
                count += 1
                name = f"{stem}_{count}"
            taken.add(name)
            trackers.append(keras.metrics.Mean(name=name))
        return trackers

    # Training.

    def compile(self, optimizer="adam", loss=None, metrics=None, **kwargs):
        """Configures training, as in `keras.Model`.

        Args:
            optimizer: Optimizer of the student.
            loss: The hard loss: any loss of Keras, or a structure of them for several outputs.
            metrics: Metrics of the student's outputs.
            **kwargs: The other arguments of `keras.Model.compile`.

        Raises:
            ValueError: if `alpha` is below 1 and there is no `loss`.
        """
        if loss is None and self.alpha < 1:
            raise ValueError(
                "Distiller: compile() needs `loss`, the loss on the labels, with "
                f"alpha={self.alpha}; got loss=None. With alpha=1 it is not used."
            )
        # Past Keras's Distiller, which hides the loss from the trainer: then samples, classes and
        # outputs could not be weighted, nor could a `.keras` file be compiled on loading.
        super(keras.distillation.Distiller, self).compile(
            optimizer=optimizer, loss=loss, metrics=metrics, **kwargs
        )

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def call(self, inputs, training=None, **kwargs):
        """Outputs of the student."""
        if self._student_feature_extractor is None or self.alpha == 0:
            return super().call(inputs, training=training, **kwargs)
        features = self._student_feature_extractor(inputs, training=training, **kwargs)
        self._forward.features = features
        return features["final_output"]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of a batch: `alpha * soft + (1 - alpha) * hard + regularizers`.

        Args:
            x: Inputs.
            y: Labels; `None` only with `alpha=1`.
            y_pred: Outputs of the student; by default it is run.
            sample_weight: Weights of the samples in the hard loss.
            training: Whether the student runs in training mode.

        Returns:
            Scalar tensor.
        """
        if y_pred is None:
            y_pred = self(x, training=training)
        # Before the teacher runs: its layers may add losses of their own.
        penalties = [ops.sum(loss) for loss in self.losses]
        hard = soft = 0.0
        parts = []
        if self.alpha < 1:
            if y is None:
                raise ValueError(
                    f"Distiller: labels are needed with alpha={self.alpha}; give `y`, or use "
                    "alpha=1."
                )
            hard = self._compile_loss(y, y_pred, sample_weight)
            parts.append((1.0 - self.alpha) * hard)
        if self.alpha > 0:
            soft = self._soft_loss(x, self._student_features(x, y_pred, training))
            parts.append(self.alpha * soft)
        total = sum(penalties, sum(parts[1:], parts[0]))
        size = ops.shape(next(v for v in tree.flatten(x) if v is not None))[0]
        self.student_loss_tracker.update_state(hard, size)
        self.distillation_loss_tracker.update_state(soft, size)
        self.total_loss_tracker.update_state(total, size)
        return total

    def _student_features(self, x, y_pred, training):
        if self._student_feature_extractor is None:
            return {"final_output": y_pred}
        features, self._forward.features = self._forward.features, None
        if features is None or features["final_output"] is not y_pred:
            # Predictions that are not those of the last call.
            features = self._student_feature_extractor(x, training=training)
        return {**features, "final_output": y_pred}

    def _soft_loss(self, x, student_features):
        teacher_features = self._extract_all_teacher_features(x)
        size = ops.shape(next(v for v in tree.flatten(x) if v is not None))[0]
        total = 0.0
        for i, term in enumerate(self._terms):
            value = term(teacher_features, student_features)
            if self.loss_trackers:
                self.loss_trackers[i].update_state(value, size)
            total = total + term.weight * value
        return total

    def get_config(self):
        config = super().get_config()
        del config["student_loss_weight"]
        return {**config, "alpha": self.alpha}


class _Forward:
    """Features of the last call, on their way from `call` to `compute_loss` of the same step."""

    features = None


@dataclasses.dataclass(eq=False)
class _Term:
    """One distillation loss.

    Args:
        loss: `keras.distillation.DistillationLoss`.
        weight: Its weight.
        pairs: List of `(teacher layer name, student layer name, adapter)`; names of `None` are
            outputs, adapters may be `None`.
    """

    loss: keras.distillation.DistillationLoss
    weight: float
    pairs: list

    def __call__(self, teacher_features, student_features):
        total = 0.0
        for teacher_name, student_name, adapter in self.pairs:
            target = teacher_features[teacher_name or "final_output"]
            target = tree.map_structure(ops.stop_gradient, target)
            output = student_features[student_name or "final_output"]
            if adapter is not None:
                output = adapter(output)
            self.loss.validate_outputs(target, output)
            value = self.loss.compute_loss(target, output)
            if len(value.shape):
                raise ValueError(
                    f"Distiller: compute_loss() of {type(self.loss).__name__} must give a scalar; "
                    f"got shape {tuple(value.shape)}."
                )
            total = total + value
        return total


def _soft_targets(temperature, teacher, student):
    flags = {}
    for side, model in (("teacher", teacher), ("student", student)):
        kinds = {kind == "softmax" for kind in output_activations(model)}
        if len(kinds) == 2:
            raise ValueError(
                f"Distiller: some outputs of {side} '{model.name}' are softmax probabilities and "
                "some are not; give `distillation_losses` for the outputs to distil."
            )
        flags[f"{side}_from_logits"] = kinds != {True}
    return LogitsDistillation(temperature, **flags)


def _shape(model, extractor, name):
    if extractor is not None:
        output = extractor.output[name or "final_output"]
    else:
        outputs = getattr(model, "outputs", None) or ()
        output = outputs[0] if len(outputs) == 1 else None
    return getattr(output, "shape", None)
