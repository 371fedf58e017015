"""Checks of what a `Distiller` is given."""

import warnings

import keras
from keras import tree

from keras_compress import validation
from keras_compress.distillation.logits_distillation import LogitsDistillation, output_activations


def check_models(teacher, student, may_share):
    """Raises `ValueError` unless both are built models; without `may_share`, sharing no weights."""
    for side, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, keras.Model):
            raise ValueError(f"Distiller: `{side}` must be a keras.Model; got {side}={model!r}.")
        if not model.built:
            raise ValueError(
                f"Distiller: {side} '{model.name}' is not built; give it a keras.Input or call "
                "it on a batch first."
            )
    frozen = {id(variable) for variable in teacher.variables}
    shared = [v.path for v in student.variables if id(v) in frozen]
    if shared and not may_share:
        raise ValueError(
            f"Distiller: student '{student.name}' shares weights with teacher "
            f"'{teacher.name}' ({', '.join(shared[:3])}), and the teacher is frozen; use "
            "keras.models.clone_model() and set_weights() to copy layers."
        )


def check_alpha(alpha, student_loss_weight, owner):
    """Returns `alpha` of the two arguments, of which one may be given."""
    if alpha is not None and student_loss_weight is not None:
        raise ValueError(
            "Distiller: `student_loss_weight` is 1 - alpha, give one of the two; got "
            f"alpha={alpha!r}, student_loss_weight={student_loss_weight!r}."
        )
    if student_loss_weight is not None:
        return 1.0 - validation.number(
            "student_loss_weight", student_loss_weight, 0, 1, owner=owner
        )
    return validation.number("alpha", 0.5 if alpha is None else alpha, 0, 1, owner=owner)


def check_losses(name, losses, owner):
    """Returns distillation losses as a list, or raises `ValueError`."""
    losses = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    wrong = [x for x in losses if not isinstance(x, keras.distillation.DistillationLoss)]
    if wrong or not losses:
        raise ValueError(
            f"{validation.prefix(owner)}`{name}` must be a keras.distillation.DistillationLoss or "
            f"a list of at least one, or None; got {name}={wrong or losses!r}."
        )
    for loss in losses:
        if type(loss) is keras.distillation.LogitsDistillation and any(
            part is keras.losses.kl_divergence for part in tree.flatten(loss.loss)
        ):
            warnings.warn(
                "keras.distillation.LogitsDistillation(loss='kl_divergence') compares raw "
                "logits, without softmax, as of Keras 3.15; use kc.distillation."
                "LogitsDistillation, or loss=keras.losses.KLDivergence().",
                stacklevel=4,
            )
    return losses


def check_weights(weights, losses, owner):
    """Returns one weight for each loss."""
    if weights is None:
        return [1.0] * len(losses)
    weights = list(weights) if isinstance(weights, (list, tuple)) else [weights]
    if len(weights) != len(losses):
        raise ValueError(
            "Distiller: `distillation_loss_weights` must have one number for each of the "
            f"{len(losses)} distillation losses; got distillation_loss_weights={weights!r}."
        )
    name = "distillation_loss_weights"
    return [validation.number(f"{name}[{i}]", w, 0, owner=owner) for i, w in enumerate(weights)]


def check_stages(stages, losses, weights, temperature, kind):
    """Returns the stages as a list, or raises `ValueError`."""
    stages = list(stages) if isinstance(stages, (list, tuple)) else [stages]
    wrong = [stage for stage in stages if not isinstance(stage, kind)]
    if wrong or not stages:
        raise ValueError(
            "Distiller: `stages` must be a list of at least one kc.distillation.Stage; got "
            f"stages={wrong or stages!r}."
        )
    if not losses is weights is temperature is None:
        raise ValueError(
            "Distiller: with `stages`, losses and their weights belong to each Stage; leave "
            "`distillation_losses`, `distillation_loss_weights` and `temperature` out."
        )
    if any(stage.epochs is None for stage in stages[:-1]):
        raise ValueError(
            "Distiller: each stage but the last needs `epochs`; got "
            f"{[stage.epochs for stage in stages]}."
        )
    return stages


def soft_targets(temperature, teacher, student):
    """Hinton's loss for what the models give: logits or probabilities."""
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
