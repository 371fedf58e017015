"""AttentionTransfer: where the teacher looks."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.distillation.feature_loss import FeatureLoss


@keras.saving.register_keras_serializable(package="keras_compress")
class AttentionTransfer(FeatureLoss):
    """Distance of attention maps, `|| Q_S / ||Q_S|| - Q_T / ||Q_T|| ||` with `Q = sum_c |A_c|^p`.

    Sum over the pairs of layers, mean of the batch. Channel counts may differ; a student's image
    map of another height and width is resized (bilinear) to the teacher's after the sum over
    channels. A scale of the features does not matter. The paper weighs it with `beta / 2`: see
    `distillation_loss_weights`.

    Args:
        teacher_layer_name: Name or glob of the teacher's layers, with outputs
            `(batch, ..., channels)` and at least one axis between.
        student_layer_name: The same for the student.
        p: Power of the activations, at least 1: the larger, the more the strongest ones count.

    Raises:
        ValueError: see `FeatureLoss`; also for features without spatial axes.

    Reference:
        S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance
        of Convolutional Neural Networks via Attention Transfer", 2017.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> attention = kc.distillation.AttentionTransfer("conv*", "conv*")
    >>> here, there = np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 5))
    >>> here[0, 0, 0], there[0, 1, 1] = 1.0, 1.0
    >>> round(float(attention.compute_loss(here, there)), 4)
    1.4142
    """

    def __init__(self, teacher_layer_name=None, student_layer_name=None, p=2):
        super().__init__(teacher_layer_name, student_layer_name, adapter=None)
        self.p = validation.number("p", p, 1, owner=self)

    def distance(self, teacher, student):
        target = self._map(teacher)
        attention = self._map(student)
        if tuple(target.shape[1:]) != tuple(attention.shape[1:]) and len(target.shape) == 3:
            size = ops.shape(target)[1:]
            attention = ops.image.resize(attention[..., None], size, data_format="channels_last")
            attention = attention[..., 0]
        difference = _normalize(attention) - _normalize(target)
        return _norm(difference)[:, 0]

    def _map(self, features):
        return ops.sum(ops.power(ops.abs(features), self.p), axis=-1)

    def check_shapes(self, teacher_shape, student_shape):
        rank = len(teacher_shape)
        resizable = rank == 4 or tuple(teacher_shape[1:-1]) == tuple(student_shape[1:-1])
        if rank < 3 or rank != len(student_shape) or not resizable:
            raise ValueError(
                f"{validation.prefix(self)}attention maps need features (batch, ..., channels) "
                "with as many axes on both sides, and equal sizes unless they are images; got "
                f"{tuple(teacher_shape)} from teacher layer {self.teacher_layer_name!r} and "
                f"{tuple(student_shape)} from student layer {self.student_layer_name!r}."
            )

    def get_config(self):
        config = super().get_config()
        del config["adapter"]
        return {**config, "p": self.p}


def _normalize(attention):
    flat = ops.reshape(attention, (ops.shape(attention)[0], -1))
    return flat / ops.maximum(_norm(flat), 1e-12)


def _norm(rows):
    squares = ops.sum(ops.square(rows), axis=1, keepdims=True)
    # The square root has no slope at 0: equal maps, and maps of dead units, get the gradient 0.
    live = ops.greater(squares, 0.0)
    return ops.where(live, ops.sqrt(ops.where(live, squares, 1.0)), 0.0)
