"""ProposalMimic: features of a detector, compared in the regions of proposals."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.distillation.feature_loss import FeatureLoss


@keras.saving.register_keras_serializable(package="keras_compress")
class ProposalMimic(FeatureLoss):
    """Distance of features in regions: `1 / (2 N) sum_i 1 / m_i || u_i - r(v_i) ||^2`.

    `u_i` and `v_i` are the teacher's and the student's features of region `i`, pooled to
    `pool x pool`; `m_i` is their number of values and `N` the number of regions in the batch.
    Features outside of all regions, most of an image, do not count. The maps may have different
    strides, since boxes are in units of the image; the regressor `r` (a 1x1 convolution to the
    teacher's channels, see `FeatureLoss`) is the `adapter`.

    Regions are pooled by area (`pool_regions`): the mean over a bin, in which a cell counts as far
    as it lies in it, instead of the maximum of pyramid pooling: no rounding of boxes to cells, and
    a gradient for each cell of a region.

    Needs `kc.distillation.Distiller`, which hands on the batch that boxes are made from.

    Args:
        teacher_layer_name: Name of the teacher's layer, with output
            `(batch, height, width, channels)`.
        student_layer_name: The same for the student.
        boxes_fn: Function `boxes_fn(x, y)` of the batch's inputs and labels (`None` without labels)
            that gives boxes `(batch, boxes, 4)`, rows `(top, left, bottom, right)` from 0 to 1.
            Empty boxes (for padding) are left out. It runs in the compiled step: `keras.ops` only.
        pool: Bins along each side of a region.
        adapter: The regressor: `"auto"`, `"regressor"`, a Keras layer that keeps height and width,
            or `None`.

    Raises:
        ValueError: see `FeatureLoss`; also for features that are no image maps, and boxes of
            another shape.

    Reference:
        Q. Li, S. Jin, J. Yan, "Mimicking Very Efficient Network for Object Detection", 2017.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> loss = kc.distillation.ProposalMimic("c4", "c4", lambda x, y: y["boxes"], pool=1)
    >>> teacher, student = np.zeros((1, 2, 2, 3)), np.zeros((1, 4, 4, 3))
    >>> teacher[0, 0, 0], student[0, 3, 3] = 2.0, 100.0
    >>> labels = {"boxes": np.array([[[0.0, 0.0, 0.5, 0.5]]])}
    >>> float(loss.compute_loss(teacher, student, x=None, y=labels))
    2.0
    """

    def __init__(
        self,
        teacher_layer_name=None,
        student_layer_name=None,
        boxes_fn=None,
        pool=7,
        adapter="auto",
    ):
        super().__init__(teacher_layer_name, student_layer_name, adapter)
        if not callable(boxes_fn):
            raise ValueError(
                f"{validation.prefix(self)}`boxes_fn` must be a function of inputs and labels that "
                f"gives boxes (batch, boxes, 4); got boxes_fn={boxes_fn!r}."
            )
        self.boxes_fn = boxes_fn
        self.pool = validation.positive_int("pool", pool, owner=self)

    def compute_loss(self, teacher_outputs, student_outputs, x=None, y=None, **kwargs):
        if x is None and y is None:
            raise ValueError(
                f"{validation.prefix(self)}boxes come from the batch, boxes_fn(x, y), but neither "
                "`x` nor `y` was given; Keras's own Distiller does not hand them on, use "
                "kc.distillation.Distiller."
            )
        boxes = ops.convert_to_tensor(self.boxes_fn(x, y))
        if len(boxes.shape) != 3 or boxes.shape[-1] != 4:
            raise ValueError(
                f"{validation.prefix(self)}boxes_fn(x, y) must give boxes of shape "
                f"(batch, boxes, 4); got {tuple(boxes.shape)}."
            )
        boxes = ops.clip(ops.stop_gradient(ops.cast(boxes, "float32")), 0.0, 1.0)
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = ops.cast(ops.all(ops.greater(sides, 0.0), axis=-1), "float32")
        distances = self.distance(
            pool_regions(teacher_outputs, boxes, self.pool),
            pool_regions(student_outputs, boxes, self.pool),
        )
        return ops.sum(valid * distances) / ops.maximum(ops.sum(valid), 1.0)

    def distance(self, teacher, student):
        """Half the mean squared difference of each region.

        Args:
            teacher: Float tensor `(batch, boxes, pool, pool, channels)`.
            student: The same of the student.

        Returns:
            Tensor `(batch, boxes)`.
        """
        return 0.5 * ops.mean(ops.square(teacher - student), axis=(2, 3, 4))

    def make_adapter(self, teacher_shape, student_shape):
        # Height and width may differ: regions are compared, not maps.
        self._check_images(teacher_shape, student_shape)
        return super().make_adapter((*student_shape[:-1], teacher_shape[-1]), student_shape)

    def validate_outputs(self, teacher_outputs, student_outputs):
        self._check_images(teacher_outputs.shape, student_outputs.shape)
        self.check_shapes(
            (*student_outputs.shape[:-1], teacher_outputs.shape[-1]), student_outputs.shape
        )

    def _check_images(self, teacher_shape, student_shape):
        if len(teacher_shape) != 4 or len(student_shape) != 4:
            raise ValueError(
                f"{validation.prefix(self)}regions need features (batch, height, width, channels); "
                f"got {tuple(teacher_shape)} from teacher layer {self.teacher_layer_name!r} and "
                f"{tuple(student_shape)} from student layer {self.student_layer_name!r}."
            )

    def get_config(self):
        return {
            **super().get_config(),
            "boxes_fn": keras.saving.serialize_keras_object(self.boxes_fn),
            "pool": self.pool,
        }

    @classmethod
    def from_config(cls, config):
        boxes_fn = keras.saving.deserialize_keras_object(config["boxes_fn"])
        return super().from_config({**config, "boxes_fn": boxes_fn})


def pool_regions(features, boxes, pool):
    """Features of regions, averaged over `pool x pool` bins of equal size each.

    A bin's value is the integral of the map, taken as constant within each of its cells, over the
    bin's area. A box that covers `pool x pool` cells gives these cells as they are.

    Args:
        features: Tensor `(batch, height, width, channels)`.
        boxes: Float tensor `(batch, boxes, 4)`, rows `(top, left, bottom, right)`, each from 0 to 1
            along height or width.
        pool: Bins along each side.

    Returns:
        float32 tensor `(batch, boxes, pool, pool, channels)`; 0 for empty boxes.
    """
    # Coordinates in half precision would be off by whole cells.
    features, boxes = ops.cast(features, "float32"), ops.cast(boxes, "float32")
    height, width = ops.shape(features)[1:3]
    rows = _shares(boxes[..., 0], boxes[..., 2], height, pool)
    columns = _shares(boxes[..., 1], boxes[..., 3], width, pool)
    pooled = ops.einsum("bnph,bhwc->bnpwc", rows, features)
    return ops.einsum("bnqw,bnpwc->bnpqc", columns, pooled)


def _shares(low, high, size, pool):
    """Share of each cell in each bin along one axis, `(batch, boxes, pool, size)`."""
    steps = ops.arange(pool + 1, dtype="float32") / pool
    scale = ops.cast(size, "float32")
    edges = scale * (low[..., None] + (high - low)[..., None] * steps)
    starts, ends = edges[..., :-1, None], edges[..., 1:, None]
    cells = ops.cast(ops.arange(size), "float32")
    overlap = ops.maximum(ops.minimum(ends, cells + 1.0) - ops.maximum(starts, cells), 0.0)
    lengths = ends - starts
    filled = ops.greater(lengths, 0.0)
    return ops.where(filled, overlap / ops.where(filled, lengths, 1.0), 0.0)
