"""ModelLoss: base of the losses that call teacher and student themselves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_compress import validation


@dataclasses.dataclass
class Batch:
    """What a step of a `Distiller` knows.

    Args:
        x: Inputs as `fit` got them.
        y: Labels, or `None`.
        y_pred: The student's outputs.
        sample_weight: Weights of the samples in the hard loss, or `None`.
        training: Whether this is a step of training.
        teacher_inputs: The teacher's part of `x`.
        student_inputs: The student's part of `x`: the same, unless inputs are paired.
        teacher_features: Dict from layer names to the teacher's outputs there; `"final_output"` is
            its output. No gradient leads into the teacher.
        student_features: The same of the student.
        teacher_output: The teacher's output, not blocked for gradients.
        teacher: Function from inputs to the teacher's outputs, in inference mode.
        student: Function from inputs to the student's outputs, in inference mode: the batch
            statistics and random numbers of a step are those of its own forward pass.
        hard_loss: Function of labels and outputs: the loss given to `compile`, mean of the batch;
            `None` if there is none.
    """

    x: Any = None
    y: Any = None
    y_pred: Any = None
    sample_weight: Any = None
    training: bool = True
    teacher_inputs: Any = None
    student_inputs: Any = None
    teacher_features: dict | None = None
    student_features: dict | None = None
    teacher_output: Any = None
    teacher: Callable | None = None
    student: Callable | None = None
    hard_loss: Callable | None = None


class ModelLoss(keras.distillation.DistillationLoss):
    """Base of losses that need more than outputs: a subclass writes `model_loss`.

    It runs in `kc.distillation.Distiller` only. All of the student is trained on it. (A loss that
    is of this kind in some mode only may have `needs_models` and `model_loss` without this class.)
    """

    needs_models = True

    def model_loss(self, teacher, student, batch):
        """The formula.

        Args:
            teacher: Function from inputs to the teacher's outputs, in inference mode.
            student: The same of the student.
            batch: A `Batch`: inputs, labels, and what else the step knows.

        Returns:
            Scalar tensor.
        """
        raise NotImplementedError

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        raise ValueError(
            f"{validation.prefix(self)}needs the models, not only what they give; use "
            "kc.distillation.Distiller."
        )
