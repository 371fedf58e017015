"""NeuronSelectivity: where the teacher's neurons fire, as a distribution (NST)."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.distillation.feature_loss import FeatureLoss
from keras_compress.distillation.feature_maps import check_maps


@keras.saving.register_keras_serializable(package="keras_compress")
class NeuronSelectivity(FeatureLoss):
    """Squared maximum mean discrepancy (MMD) between the channels of teacher and student.

    A channel's sample is its map over the positions, scaled to norm 1. The loss is
    `mean k(t, t') + mean k(s, s') - 2 mean k(t, s)` over the pairs of channels, mean of the batch,
    sum over the pairs of layers. Channel counts may differ, and the order of channels does not
    matter; a student's image map of another height and width is resized (bilinear) to the
    teacher's. The paper weighs it with `lambda / 2`: see `distillation_loss_weights`.

    Args:
        teacher_layer_name: Name or glob of the teacher's layers, with outputs
            `(batch, ..., channels)` and at least one axis between.
        student_layer_name: The same for the student.
        kernel: `"linear"`: `x'y`, which compares the mean maps only; `"poly"`: `(x'y)^2`, the
            paper's best; `"gaussian"`: `exp(-||x - y||^2 / (2 sigma^2))` with `sigma^2` the mean
            squared distance of a teacher's and a student's channel of the sample.

    Raises:
        ValueError: see `FeatureLoss`; also for features without spatial axes.

    Reference:
        Z. Huang, N. Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        2017.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> loss = kc.distillation.NeuronSelectivity("conv*", "conv*", kernel="linear")
    >>> teacher, student = np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 2))
    >>> teacher[0, 0, 0], student[0, 0, 0, 0], student[0, 1, 1, 1] = 5.0, 3.0, 4.0
    >>> float(loss.compute_loss(teacher, student))
    0.5
    """

    def __init__(self, teacher_layer_name=None, student_layer_name=None, kernel="poly"):
        super().__init__(teacher_layer_name, student_layer_name, adapter=None)
        kernels = ("linear", "poly", "gaussian")
        self.kernel = validation.one_of("kernel", kernel, kernels, owner=self)

    def distance(self, teacher, student):
        if tuple(teacher.shape[1:-1]) != tuple(student.shape[1:-1]):
            size = ops.shape(teacher)[1:-1]
            student = ops.image.resize(student, size, data_format="channels_last")
        teacher, student = _patterns(teacher), _patterns(student)
        if self.kernel == "linear":
            # The mean of inner products is the one of the means: no channels-by-channels table.
            gap = ops.mean(teacher, axis=2) - ops.mean(student, axis=2)
            return ops.sum(ops.square(gap), axis=1)
        kernel = self._poly if self.kernel == "poly" else _gaussian(teacher, student)
        return (
            _mean(kernel(teacher, teacher))
            + _mean(kernel(student, student))
            - 2.0 * _mean(kernel(teacher, student))
        )

    @staticmethod
    def _poly(a, b):
        return ops.square(_products(a, b))

    def check_shapes(self, teacher_shape, student_shape):
        check_maps(self, "activation patterns", teacher_shape, student_shape)

    def get_config(self):
        config = super().get_config()
        del config["adapter"]
        return {**config, "kernel": self.kernel}


def _patterns(features):
    """`(batch, positions, channels)`, each channel of norm 1, or 0 where it is dead."""
    shape = ops.shape(features)
    flat = ops.reshape(features, (shape[0], -1, shape[-1]))
    squares = ops.sum(ops.square(flat), axis=1, keepdims=True)
    return flat * ops.rsqrt(ops.maximum(squares, 1e-24))


def _products(a, b):
    return ops.matmul(ops.transpose(a, (0, 2, 1)), b)


def _mean(table):
    return ops.mean(table, axis=(1, 2))


def _squared_distances(a, b):
    squares = [ops.sum(ops.square(x), axis=1) for x in (a, b)]
    return squares[0][:, :, None] + squares[1][:, None, :] - 2.0 * _products(a, b)


def _gaussian(teacher, student):
    # The width is a choice of the kernel, not something to be trained.
    spread = ops.stop_gradient(ops.mean(_squared_distances(teacher, student), axis=(1, 2)))
    spread = ops.maximum(spread, 1e-12)[:, None, None]

    def kernel(a, b):
        return ops.exp(-0.5 * _squared_distances(a, b) / spread)

    return kernel
