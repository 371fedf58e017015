"""FSP: how features flow from one layer to a later one."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.distillation.feature_loss import FeatureLoss


@keras.saving.register_keras_serializable(package="keras_compress")
class FSP(FeatureLoss):
    """Squared distance of flow matrices (FSP: flow of the solution procedure), mean of the batch.

    The matrix of a block is `G = 1 / (positions) sum_p F1[p] F2[p]'`, channels of its first layer
    by channels of its last, over positions; the larger map is max-pooled to the smaller one's size.
    The loss is `|| G_teacher - G_student ||_F^2`. Positions may differ between teacher and student,
    channels may not. Several blocks are several losses, each with its weight.

    The paper has two stages, first only this loss, then the task alone from these weights:
    `Distiller(teacher, student, stages=[Stage([FSP(...), FSP(...)], epochs=20), Stage()])`.

    Needs `kc.distillation.Distiller`: Keras's own takes one layer of each side.

    Args:
        teacher_layer_name: Two names, the first and the last layer of the teacher's block, with
            outputs `(batch, ..., channels)` and at least one axis between.
        student_layer_name: The same for the student.

    Raises:
        ValueError: see `FeatureLoss`; also for matrices of different shapes.

    Reference:
        J. Yim, D. Joo, J. Bae, J. Kim, "A Gift from Knowledge Distillation: Fast Optimization,
        Network Minimization and Transfer Learning", 2017.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> loss = kc.distillation.FSP(("stem", "block1"), ("stem", "block1"))
    >>> teacher = np.full((1, 4, 4, 1), 3.0), np.full((1, 2, 2, 1), 2.0)
    >>> student = np.full((1, 4, 4, 1), 1.0), np.full((1, 4, 4, 1), 1.0)
    >>> float(loss.compute_loss(teacher, student))
    25.0
    """

    def __init__(self, teacher_layer_name, student_layer_name):
        for name, value in (
            ("teacher_layer_name", teacher_layer_name),
            ("student_layer_name", student_layer_name),
        ):
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise ValueError(
                    f"{validation.prefix(self)}`{name}` must be the names of two layers, the first "
                    f"and the last of a block; got {name}={value!r}."
                )
        super().__init__(tuple(teacher_layer_name), tuple(student_layer_name), adapter=None)

    def distance(self, teacher, student):
        difference = flow_matrix(*teacher) - flow_matrix(*student)
        return ops.sum(ops.square(difference), axis=(1, 2))

    def check_shapes(self, teacher_shape, student_shape):
        for side, (first, last) in (("teacher", teacher_shape), ("student", student_shape)):
            sizes = [*first[1:-1], *last[1:-1]]
            poolable = None not in sizes or tuple(first[1:-1]) == tuple(last[1:-1])
            if len(first) < 3 or len(first) != len(last) or not poolable:
                raise ValueError(
                    f"{validation.prefix(self)}both layers of a block need outputs "
                    "(batch, ..., channels) with as many axes, of known sizes if pooled; got "
                    f"{tuple(first)} and {tuple(last)} of the {side}."
                )
        shapes = [(first[-1], last[-1]) for first, last in (teacher_shape, student_shape)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{validation.prefix(self)}flow matrices must have equal shapes; got {shapes[0]} "
                f"of teacher layers {self.teacher_layer_name!r} and {shapes[1]} of student layers "
                f"{self.student_layer_name!r}. Choose layers with as many channels: the student "
                "may have fewer blocks or layers, not narrower ones there."
            )

    def get_config(self):
        config = super().get_config()
        del config["adapter"]
        return config


def flow_matrix(first, last):
    """The FSP matrix of two layers.

    Args:
        first: Features of the block's first layer, `(batch, ..., channels1)`.
        last: Features of its last layer, `(batch, ..., channels2)`.

    Returns:
        Tensor `(batch, channels1, channels2)`.
    """
    sizes = zip(first.shape[1:-1], last.shape[1:-1], strict=True)
    size = [a if a == b else min(a, b) for a, b in sizes]
    first, last = (_positions(x, size) for x in (first, last))
    count = ops.cast(ops.shape(first)[1], first.dtype)
    return ops.matmul(ops.transpose(first, (0, 2, 1)), last) / count


def _positions(features, size):
    for axis, wanted in enumerate(size, start=1):
        if features.shape[axis] != wanted:
            features = _max_pool(features, axis, wanted)
    shape = ops.shape(features)
    return ops.reshape(features, (shape[0], -1, shape[-1]))


def _max_pool(features, axis, size):
    """Adaptive pooling of one axis, from `floor(i n / size)` up to `ceil((i + 1) n / size)`.

    Not `ops.adaptive_max_pool`, which ends the process in TensorFlow 2.21 for some shapes.
    """
    length = features.shape[axis]
    starts = np.arange(size) * length // size
    ends = -(-np.arange(1, size + 1) * length // size)
    # Shorter windows repeat their last entry.
    windows = np.minimum(starts[:, None] + np.arange((ends - starts).max()), ends[:, None] - 1)
    return ops.max(ops.take(features, windows, axis=axis), axis=axis + 1)
