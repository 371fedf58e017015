"""FeatureLoss: base of the losses that compare layers inside teacher and student."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.distillation.pairs import layer_pairs


class FeatureLoss(keras.distillation.DistillationLoss):
    """Base of losses on features: a subclass writes one formula, `distance`.

    Layers are named exactly or by a glob (`"block*_out"`). Globs that match several layers pair
    them in the order of the models' layers; the loss is then the sum over the pairs. Features have
    their channels last.

    Exact names with features of equal shape also run in Keras's own `Distiller`; globs and adapters
    need `kc.distillation.Distiller`.

    Args:
        teacher_layer_name: Name or glob of the teacher's layers; `None`: the teacher's output.
        student_layer_name: The same for the student.
        adapter: What brings the student's features to the teacher's shape. It is trained with the
            student, belongs to the `Distiller` and is no part of the student.

            - `"auto"`: a `"regressor"` where the shapes differ, nothing where they are equal;
            - `"regressor"`: always: a dense layer on the channels (for maps, that is a 1x1
              convolution), or where the student's map is larger than the teacher's, a convolution
              without padding whose kernel has `student size - teacher size + 1` taps an axis;
            - a Keras layer, of which each pair gets a copy;
            - `None`: nothing.

    Raises:
        ValueError: for arguments that do not make sense; with a `Distiller`, if a name matches no
            layer or the shapes do not fit.
    """

    def __init__(self, teacher_layer_name=None, student_layer_name=None, adapter="auto"):
        for name, value in (
            ("teacher_layer_name", teacher_layer_name),
            ("student_layer_name", student_layer_name),
        ):
            if value is not None and not isinstance(value, str):
                raise ValueError(
                    f"{validation.prefix(self)}`{name}` must be a layer name, a glob or None; got "
                    f"{name}={value!r}."
                )
        if not isinstance(adapter, keras.layers.Layer):
            validation.one_of("adapter", adapter, ("auto", "regressor", None), owner=self)
        self.teacher_layer_name = teacher_layer_name
        self.student_layer_name = student_layer_name
        self.adapter = adapter

    # What a subclass writes.

    def distance(self, teacher, student):
        """The formula.

        Args:
            teacher: Float tensor `(batch, ..., channels)`: the teacher's features.
            student: The student's, through the adapter if there is one.

        Returns:
            Tensor `(batch,)`.
        """
        raise NotImplementedError

    def check_shapes(self, teacher_shape, student_shape):
        """Raises `ValueError` for features that `distance` cannot compare."""
        if not _compatible(teacher_shape, student_shape):
            raise ValueError(
                f"{validation.prefix(self)}features of teacher layer {self.teacher_layer_name!r}, "
                f"shape {tuple(teacher_shape)}, and of student layer {self.student_layer_name!r}, "
                f"shape {tuple(student_shape)}, must have equal shapes. Choose other layers, or "
                "use kc.distillation.Distiller and `adapter`."
            )

    # What every loss gets from it.

    def validate_model_compatibility(self, teacher, student):
        layer_pairs(self, teacher, student)

    def validate_outputs(self, teacher_outputs, student_outputs):
        super().validate_outputs(teacher_outputs, student_outputs)
        self.check_shapes(teacher_outputs.shape, student_outputs.shape)

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return ops.mean(self.distance(_float32(teacher_outputs), _float32(student_outputs)))

    def make_adapter(self, teacher_shape, student_shape):
        """Makes the adapter of one pair of layers.

        Args:
            teacher_shape: Shape of the teacher's features, batch axis first.
            student_shape: Shape of the student's.

        Returns:
            A built layer, or `None` if none is needed.

        Raises:
            ValueError: if no adapter of the kind asked for gives the teacher's shape.
        """
        layer = None
        if isinstance(self.adapter, keras.layers.Layer):
            layer = type(self.adapter).from_config(self.adapter.get_config())
        elif self.adapter == "regressor" or (
            self.adapter == "auto" and not _compatible(teacher_shape, student_shape)
        ):
            layer = self._regressor(teacher_shape, student_shape)
        if layer is not None:
            layer.build(student_shape)
            student_shape = layer.compute_output_shape(student_shape)
        self.check_shapes(teacher_shape, student_shape)
        return layer

    def _regressor(self, teacher_shape, student_shape):
        channels = teacher_shape[-1]
        inner = list(zip(teacher_shape[1:-1], student_shape[1:-1], strict=False))
        if len(teacher_shape) == len(student_shape):
            if all(t == s or None in (t, s) for t, s in inner):
                return keras.layers.Dense(channels)
            if len(inner) <= 3 and all(None not in (t, s) and s >= t for t, s in inner):
                convolution = getattr(keras.layers, f"Conv{len(inner)}D")
                kernel_size = tuple(s - t + 1 for t, s in inner)
                return convolution(channels, kernel_size, data_format="channels_last")
        raise ValueError(
            f"{validation.prefix(self)}no regressor leads from student layer "
            f"{self.student_layer_name!r}, shape {tuple(student_shape)}, to teacher layer "
            f"{self.teacher_layer_name!r}, shape {tuple(teacher_shape)}: the student's map must "
            "have as many axes and be at least as large. Choose other layers, or give a layer as "
            "`adapter`."
        )

    def get_config(self):
        adapter = self.adapter
        if isinstance(adapter, keras.layers.Layer):
            adapter = keras.layers.serialize(adapter)
        return {
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self.student_layer_name,
            "adapter": adapter,
        }

    @classmethod
    def from_config(cls, config):
        adapter = config.get("adapter")
        if isinstance(adapter, dict):
            config = {**config, "adapter": keras.layers.deserialize(adapter)}
        return cls(**config)


def _compatible(a, b):
    return len(a) == len(b) and all(m == n or None in (m, n) for m, n in zip(a, b, strict=True))


def _float32(x):
    # Squares and sums of features overflow in half precision.
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.cast(x, "float64" if dtype == "float64" else "float32")
