"""The distillation losses of a `Distiller`, each with its layers, adapters and name."""

import dataclasses
import inspect
import re

import keras
from keras import ops, tree

from keras_compress.distillation.feature_loss import FeatureLoss
from keras_compress.distillation.pairs import layer_pairs

OUTPUT = "final_output"


@dataclasses.dataclass(eq=False)
class Term:
    """One distillation loss.

    Args:
        loss: `keras.distillation.DistillationLoss`.
        pairs: List of `(teacher names, student names, adapter)`: a layer's name, a tuple of them,
            or `None` for the output; an adapter may be `None` and is a list where names are tuples.
        name: What its value is logged as.
    """

    loss: keras.distillation.DistillationLoss
    pairs: list
    name: str = ""

    def __post_init__(self):
        parameters = inspect.signature(self.loss.compute_loss).parameters.values()
        # A loss of a user may take the two outputs only.
        self._takes_batch = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @property
    def needs_models(self):
        """Whether the loss is a `ModelLoss`."""
        return getattr(self.loss, "needs_models", False)

    @property
    def adapters(self):
        """All adapters, in order."""
        return [a for _, _, adapter in self.pairs for a in tree.flatten(adapter) if a is not None]

    @property
    def looks_inside(self):
        """Whether only layers inside the student are looked at, not what it gives."""
        inside = all(student is not None for _, student, _ in self.pairs)
        return inside and not self.needs_models

    def __call__(self, batch):
        if self.needs_models:
            return self._scalar(self.loss.model_loss(batch.teacher, batch.student, batch))
        total = 0.0
        for teacher_names, student_names, adapter in self.pairs:
            target = _take(batch.teacher_features, teacher_names)
            output = _take(batch.student_features, student_names)
            if isinstance(adapter, list):
                output = tuple(
                    x if one is None else one(x) for x, one in zip(output, adapter, strict=True)
                )
            elif adapter is not None:
                output = adapter(output)
            self.loss.validate_outputs(target, output)
            options = {"x": batch.student_inputs, "y": batch.y, "training": batch.training}
            options = options if self._takes_batch else {}
            total = total + self._scalar(self.loss.compute_loss(target, output, **options))
        return total

    def _scalar(self, value):
        if len(value.shape):
            raise ValueError(
                f"Distiller: compute_loss() of {type(self.loss).__name__} must give a scalar; "
                f"got shape {tuple(value.shape)}."
            )
        return value


def make_terms(losses, teacher, student, teacher_extractor, student_extractor):
    """Makes the terms of losses, with new adapters.

    Args:
        losses: List of distillation losses.
        teacher: Model.
        student: Model.
        teacher_extractor: Model that gives a dict of the layers' outputs, or `None`.
        student_extractor: The same of the student.
    """
    terms, taken = [], {"loss", "student_loss", "teacher_loss", "distillation_loss", "total_loss"}
    for loss in losses:
        pairs = []
        for names in layer_pairs(loss, teacher, student):
            shapes = [
                _shapes(teacher, teacher_extractor, names[0]),
                _shapes(student, student_extractor, names[1]),
            ]
            pairs.append((*names, _make_adapter(loss, names, shapes)))
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", type(loss).__name__).lower()
        if type(loss).__name__.isupper():
            words = type(loss).__name__.lower()
        name = stem = f"{words.removesuffix('_loss')}_loss"
        count = 1
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name)
        terms.append(Term(loss, pairs, name))
    return terms


def _make_adapter(loss, names, shapes):
    if not isinstance(loss, FeatureLoss) or getattr(loss, "needs_models", False):
        return None
    if None in tree.flatten([list(s) if _several(s) else 0 if s else None for s in shapes]):
        raise ValueError(
            f"Distiller: {type(loss).__name__} compares one tensor of known shape for each layer; "
            f"teacher layer {names[0]!r} and student layer {names[1]!r} (None: the output) do not "
            "both give that. Name layers of Sequential or functional models."
        )
    return loss.make_adapter(*shapes)


def _several(shapes):
    return isinstance(shapes, list)


def _shapes(model, extractor, names):
    if isinstance(names, tuple):
        return tuple(_shapes(model, extractor, name) for name in names)
    if extractor is not None:
        output = extractor.output[names or OUTPUT]
    else:
        outputs = getattr(model, "outputs", None) or ()
        output = outputs[0] if len(outputs) == 1 else None
    return getattr(output, "shape", None)


def _take(features, names):
    if isinstance(names, tuple):
        return tuple(features[name or OUTPUT] for name in names)
    return features[names or OUTPUT]


class Mean(keras.metrics.Mean):
    """A mean that is NaN, not 0, while there is nothing to average."""

    def result(self):
        return ops.where(ops.greater(self.count, 0), super().result(), float("nan"))
