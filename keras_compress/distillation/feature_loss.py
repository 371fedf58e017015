"""FeatureLoss: base of the losses that compare layers inside teacher and student."""

import keras
from keras import ops, tree

from keras_compress import validation
from keras_compress.distillation import adapters
from keras_compress.distillation.pairs import layer_pairs


class FeatureLoss(keras.distillation.DistillationLoss):
    """Base of losses on features: a subclass writes one formula, `distance`.

    Layers are named exactly or by a glob (`"block*_out"`). Globs that match several layers pair
    them in the order of the models' layers; the loss is then the sum over the pairs. A tuple of
    names compares several layers at once: `distance` then gets tuples of features. Features have
    their channels last.

    Exact names with features of equal shape also run in Keras's own `Distiller`; tuples, globs and
    adapters need `kc.distillation.Distiller`.

    Args:
        teacher_layer_name: Name or glob of the teacher's layers; `None`: the teacher's output.
        student_layer_name: The same for the student.
        adapter: What brings the student's features to the teacher's shape. It is trained with the
            student, belongs to the `Distiller` and is no part of the student.

            - `"auto"`: a `"regressor"` where the shapes differ, nothing where they are equal;
            - `"regressor"`: always: a dense layer on the channels (for maps, that is a 1x1
              convolution), or where the student's map is larger than the teacher's, a convolution
              without padding whose kernel has `student size - teacher size + 1` taps an axis;
            - `"conv1x1"`: a 1x1 convolution, for maps of the same size;
            - `"dense"`: a dense layer from all features of a sample to all of the teacher's;
            - `"resize"`: bilinear resizing of images to the teacher's height and width, and a 1x1
              convolution if their channels differ;
            - a Keras layer, of which each pair gets a copy;
            - a function of the student's features, in `keras.ops`;
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
            parts = value if isinstance(value, tuple) and value else (value,)
            if value is not None and not all(isinstance(part, str) for part in parts):
                raise ValueError(
                    f"{validation.prefix(self)}`{name}` must be a layer name, a glob, a tuple of "
                    f"them or None; got {name}={value!r}."
                )
        self.teacher_layer_name = teacher_layer_name
        self.student_layer_name = student_layer_name
        self.adapter = adapters.check_adapter(adapter, self)

    # What a subclass writes.

    def distance(self, teacher, student):
        """The formula.

        Args:
            teacher: Float tensor `(batch, ..., channels)`: the teacher's features. A tuple of them
                if the loss names a tuple of layers.
            student: The student's, through the adapter if there is one.

        Returns:
            Tensor `(batch,)`.
        """
        raise NotImplementedError

    def check_shapes(self, teacher_shape, student_shape):
        """Raises `ValueError` for features that `distance` cannot compare."""
        if not _all_compatible(teacher_shape, student_shape):
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
        self.check_shapes(_shapes(teacher_outputs), _shapes(student_outputs))

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        teacher = tree.map_structure(_float32, teacher_outputs)
        student = tree.map_structure(_float32, student_outputs)
        return ops.mean(self.distance(teacher, student))

    def make_adapter(self, teacher_shape, student_shape):
        """Makes the adapter of one pair of layers.

        Args:
            teacher_shape: Shape of the teacher's features, batch axis first.
            student_shape: Shape of the student's.

        Returns:
            A built layer, or `None` if none is needed; a list of these for tuples of shapes.

        Raises:
            ValueError: if no adapter of the kind asked for gives the teacher's shape.
        """
        if _several(teacher_shape) or _several(student_shape):
            return self._make_adapters(teacher_shape, student_shape)
        layer = adapters.make_adapter(self, teacher_shape, student_shape)
        if layer is not None:
            student_shape = layer.compute_output_shape(student_shape)
        self.check_shapes(teacher_shape, student_shape)
        return layer

    def _make_adapters(self, teacher_shapes, student_shapes):
        if self.adapter is None:
            self.check_shapes(teacher_shapes, student_shapes)
            return None
        sides = teacher_shapes, student_shapes
        if not all(map(_several, sides)) or len(teacher_shapes) != len(student_shapes):
            raise ValueError(
                f"{validation.prefix(self)}an adapter leads from each layer of the student to one "
                f"of the teacher: name equally many; got {self.student_layer_name!r} and "
                f"{self.teacher_layer_name!r}. Or use adapter=None."
            )
        layers, shapes = [], []
        for teacher, student in zip(*sides, strict=True):
            layer = adapters.make_adapter(self, teacher, student)
            layers.append(layer)
            shapes.append(student if layer is None else layer.compute_output_shape(student))
        self.check_shapes(teacher_shapes, tuple(shapes))
        return layers

    def get_config(self):
        adapter = self.adapter
        if isinstance(adapter, keras.layers.Layer):
            adapter = keras.layers.serialize(adapter)
        elif callable(adapter):
            adapter = keras.saving.serialize_keras_object(adapter)
        return {
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self.student_layer_name,
            "adapter": adapter,
        }

    @classmethod
    def from_config(cls, config):
        adapter = config.get("adapter")
        if isinstance(adapter, dict):
            config = {**config, "adapter": keras.saving.deserialize_keras_object(adapter)}
        return cls(**config)


def _several(shapes):
    """Whether these are the shapes of several layers."""
    return isinstance(shapes, (tuple, list)) and bool(shapes) and isinstance(shapes[0], tuple)


def _shapes(outputs):
    if isinstance(outputs, (tuple, list)):
        return tuple(tuple(output.shape) for output in outputs)
    return outputs.shape


def _all_compatible(a, b):
    if _several(a) and _several(b):
        return len(a) == len(b) and all(map(adapters.compatible, a, b))
    return not _several(a) and not _several(b) and adapters.compatible(a, b)


def _float32(x):
    # Squares and sums of features overflow in half precision.
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.cast(x, "float64" if dtype == "float64" else "float32")
