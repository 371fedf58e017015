"""Apprentice: a low-precision student of a teacher in full precision."""

import keras

from keras_compress import matching, quantizers, validation
from keras_compress.convert import check_graph
from keras_compress.distillation.distiller import Distiller

_QUANTIZERS = ("kernel_quantizer", "input_quantizer", "depthwise_quantizer", "pointwise_quantizer")


@keras.saving.register_keras_serializable(package="keras_compress")
class Apprentice(Distiller):
    """Distils a network in full precision into one with quantised kernels or activations.

    The loss is `teacher_loss_weight * hard(teacher) + (1 - alpha) * hard(student) + alpha * soft`,
    where *soft* are Hinton's soft targets; the first part is in scheme A only. The defaults are the
    paper's: 1, 1/2 and 1/2 at temperature 1.

    - `"A"`: teacher and student train together, from wherever their weights are. The gradient of
      the soft targets goes to the student alone.
    - `"B"`: the teacher is trained and frozen; the student starts from its own weights.
    - `"C"`: the teacher is trained and frozen; the student is the teacher with quantised kernels,
      its latent weights the teacher's, and is fine-tuned. Compile with a low learning rate, a tenth
      or less of that of the teacher's training.

    `kc.export.to_tflite(apprentice.student)` stores the quantised kernels small.

    Args:
        teacher: A built model in full precision; trained, for schemes B and C.
        student: A built model with quantised layers (`kc.layers.QuantDense` and its kin, or
            what `kc.quantizers.apply` and `kc.quantizers.quantize_aware` give). In scheme C it may
            be left out, with `quantizer`; one that is given has the teacher's layers, and its
            weights stay as they are.
        scheme: `"A"`, `"B"` or `"C"`.
        quantizer: Scheme C: what makes the student, by `kc.quantizers.apply(teacher, quantizer,
            layers)`.
        layers: Scheme C: the layers to quantise, see `kc.quantizers.apply`. The first and the last
            one are often worth keeping in float.
        temperature: Temperature of the soft targets.
        alpha: Weight of the soft targets against the student's labels, 0 to 1.
        teacher_loss_weight: Weight of the teacher's own loss in scheme A.
        name: Name of the model.
        **kwargs: `dtype`, as in `kc.distillation.Distiller`.

    Raises:
        ValueError: if the student is missing or has no quantised layer, in scheme C has other
            layers than the teacher, or for what `kc.distillation.Distiller` does not take.

    Reference:
        A. Mishra, D. Marr, "Apprentice: Using Knowledge Distillation Techniques To Improve
        Low-Precision Network Accuracy", 2018.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> teacher = keras.Sequential([
    ...     keras.Input((16,)),
    ...     keras.layers.Dense(64, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> apprentice = kc.distillation.Apprentice(
    ...     teacher, scheme="C", quantizer=kc.quantizers.Ternary(), layers="hidden"
    ... )
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> apprentice.compile(keras.optimizers.Adam(1e-4), loss)
    >>> history = apprentice.fit(np.ones((32, 16)), np.zeros((32,)), verbose=0)
    >>> [type(layer).__name__ for layer in apprentice.student.layers]
    ['QuantDense', 'Dense']
    """

    def __init__(
        self,
        teacher,
        student=None,
        scheme="B",
        *,
        quantizer=None,
        layers=None,
        temperature=1.0,
        alpha=0.5,
        teacher_loss_weight=1.0,
        name="apprentice",
        **kwargs,
    ):
        validation.one_of("scheme", scheme, ("A", "B", "C"), owner="Apprentice")
        validation.number("temperature", temperature, 0, low_open=True, owner="Apprentice")
        if student is None:
            student = _quantised_copy(teacher, scheme, quantizer, layers)
        elif quantizer is not None or layers is not None:
            raise ValueError(
                "Apprentice: `quantizer` and `layers` make the student of scheme C; with a "
                f"`student` leave them out; got quantizer={quantizer!r}, layers={layers!r}."
            )
        else:
            _check_student(teacher, student, scheme)
        super().__init__(
            teacher,
            student,
            temperature=temperature,
            alpha=alpha,
            train_teacher=scheme == "A",
            teacher_loss_weight=teacher_loss_weight,
            name=name,
            **kwargs,
        )
        self.scheme = scheme
        self.temperature = float(temperature)

    def get_config(self):
        config = super().get_config()
        kept = ("name", "trainable", "dtype", "teacher", "student", "alpha", "teacher_loss_weight")
        return {
            **{name: config[name] for name in kept},
            "scheme": self.scheme,
            "temperature": self.temperature,
        }

    @classmethod
    def from_config(cls, config):
        restore = keras.saving.deserialize_keras_object
        return cls(**{**config, **{side: restore(config[side]) for side in ("teacher", "student")}})


def _quantised_copy(teacher, scheme, quantizer, layers):
    if scheme != "C":
        raise ValueError(
            f"Apprentice: scheme {scheme!r} needs a `student` with quantised layers; got "
            "student=None. Scheme 'C' makes one of the teacher, with `quantizer`."
        )
    if quantizer is None:
        raise ValueError(
            "Apprentice: scheme 'C' needs a `quantizer`, such as kc.quantizers.Ternary(), that "
            "makes the student of the teacher, or the `student` itself; got neither."
        )
    check_graph(teacher, "Apprentice")
    return quantizers.apply(teacher, quantizer, layers)


def _check_student(teacher, student, scheme):
    for side, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, keras.Model):
            raise ValueError(f"Apprentice: `{side}` must be a keras.Model; got {side}={model!r}.")
    leaves = {layer.name: layer for layer in matching.leaf_layers(student)}
    if not any(map(_is_quantised, leaves.values())):
        raise ValueError(
            f"Apprentice: student '{student.name}' has no quantised layer; make it with "
            "kc.quantizers.apply() or kc.layers.QuantDense and its kin. For a student in full "
            "precision use kc.distillation.Distiller."
        )
    if scheme == "C":
        for layer in matching.leaf_layers(teacher):
            kernel = getattr(layer, "kernel", None)
            other = getattr(leaves.get(layer.name), "kernel", None)
            if kernel is not None and getattr(other, "shape", None) != kernel.shape:
                raise ValueError(
                    "Apprentice: in scheme 'C' the student has the teacher's layers, but student "
                    f"'{student.name}' has no layer '{layer.name}' with a kernel of shape "
                    f"{tuple(kernel.shape)}. Leave `student` out and give `quantizer`, or use "
                    "scheme 'B'."
                )


def _is_quantised(layer):
    # Of layers of quantize_aware(), only the bits are set.
    own = any(getattr(layer, name, None) is not None for name in _QUANTIZERS)
    return own or hasattr(layer, "weight_bits")
