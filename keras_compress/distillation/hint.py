"""Hint: the student's middle layer regresses the teacher's (FitNets)."""

import keras
from keras import ops

from keras_compress.distillation.feature_loss import FeatureLoss


@keras.saving.register_keras_serializable(package="keras_compress")
class Hint(FeatureLoss):
    """Half the squared distance of features: `1/2 || teacher - r(student) ||^2`, mean of the batch.

    The norm runs over all features of a sample, so that the value grows with the layer's size;
    weigh it with `distillation_loss_weights`. The regressor `r` is the `adapter`.

    FitNets has two stages: first only the hint, which leaves the layers after the student's as they
    are, then soft and hard targets, whose weight falls:
    `stages=[Stage(Hint("mid", "mid"), epochs=10), Stage(LogitsDistillation(4.0), epochs=50,
    alpha=(0.8, 0.5))]` of a `Distiller`.

    Args:
        teacher_layer_name: Name or glob of the teacher's layers (hint); `None`: its output.
        student_layer_name: Name or glob of the student's layers (guided); `None`: its output.
        adapter: The regressor, see `FeatureLoss`.

    Raises:
        ValueError: see `FeatureLoss`.

    Reference:
        A. Romero, N. Ballas, S. Ebrahimi Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints
        for Thin Deep Nets", 2015.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> hint = kc.distillation.Hint("mid", "mid")
    >>> float(hint.compute_loss(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])))
    12.5
    """

    def distance(self, teacher, student):
        squares = ops.square(teacher - student)
        return 0.5 * ops.sum(squares, axis=tuple(range(1, len(squares.shape))))
