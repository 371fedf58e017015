"""LogitRegression: the student regresses the teacher's logits."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.distillation.feature_loss import FeatureLoss
from keras_compress.distillation.logits_distillation import output_activations
from keras_compress.distillation.pairs import layer_outputs, layer_pairs


@keras.saving.register_keras_serializable(package="keras_compress")
class LogitRegression(FeatureLoss):
    """Mean squared difference of logits, before the softmax: needs no labels.

    With `normalize=True` each class counts by the standard deviation of the teacher's logits on the
    training set, `((z_teacher - z_student) / std)^2`: the same as the distance of logits that are
    standardised with the teacher's statistics, whose means cancel, while the student's outputs stay
    plain logits. `adapt` finds the deviations, once, before training.

    The paper's student is shallow and wide, and learns faster through a linear bottleneck before
    its wide layer: `kc.layers.FactorizedDense`, whose `expand()` folds it into one `Dense`.

    Args:
        teacher_layer_name: Name of the teacher's layer that gives its logits; `None`: its output.
        student_layer_name: The same for the student.
        normalize: Whether classes are weighed by the spread of the teacher's logits.
        standard_deviation: One positive number for each class, instead of `adapt`.

    Raises:
        ValueError: for arguments that do not make sense; with a `Distiller`, for models that give
            probabilities, or before `adapt`.

    Reference:
        L. J. Ba, R. Caruana, "Do Deep Nets Really Need to Be Deep?", 2014.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> logits = np.array([[4.0, 0.0], [0.0, 1.0]])
    >>> loss = kc.distillation.LogitRegression()
    >>> loss.adapt(logits)
    >>> loss.standard_deviation
    [2.0, 0.5]
    >>> float(loss.compute_loss(logits, np.array([[2.0, 0.0], [0.0, 1.0]])))
    0.25
    """

    def __init__(
        self,
        teacher_layer_name=None,
        student_layer_name=None,
        normalize=True,
        standard_deviation=None,
    ):
        super().__init__(teacher_layer_name, student_layer_name, adapter=None)
        self.normalize = validation.one_of("normalize", normalize, (True, False), owner=self)
        if standard_deviation is not None:
            name = "standard_deviation"
            standard_deviation = [
                validation.number(f"{name}[{i}]", value, 0, low_open=True, owner=self)
                for i, value in enumerate(standard_deviation)
            ]
        self.standard_deviation = standard_deviation

    def adapt(self, logits):
        """Takes the standard deviation of each class.

        Args:
            logits: The teacher's logits on the training set, `teacher.predict(x)`: array
                `(samples, ..., classes)`.

        Raises:
            ValueError: if the logits of a class are constant.
        """
        logits = np.asarray(logits, "float64")
        deviations = logits.std(axis=tuple(range(logits.ndim - 1)))
        constant = np.flatnonzero(~(deviations > 0))
        if len(constant):
            raise ValueError(
                f"{validation.prefix(self)}`logits` must vary over the samples in every class; "
                f"they do not in classes {constant[:5].tolist()} of {logits.shape}. Give the "
                "logits of the whole training set, or use normalize=False."
            )
        self.standard_deviation = deviations.tolist()

    def distance(self, teacher, student):
        difference = teacher - student
        if self.normalize:
            self._check_adapted()
            difference = difference / ops.cast(self.standard_deviation, difference.dtype)
        return ops.mean(ops.square(difference), axis=tuple(range(1, len(difference.shape))))

    def _check_adapted(self):
        if self.standard_deviation is None:
            raise ValueError(
                f"{validation.prefix(self)}normalize=True needs the spread of the teacher's "
                "logits; call loss.adapt(teacher.predict(x)) on the training set first, or use "
                "normalize=False."
            )

    def check_shapes(self, teacher_shape, student_shape):
        super().check_shapes(teacher_shape, student_shape)
        deviations = self.standard_deviation if self.normalize else None
        if deviations is not None and len(deviations) != teacher_shape[-1]:
            raise ValueError(
                f"{validation.prefix(self)}`standard_deviation` must have one number for each of "
                f"the {teacher_shape[-1]} classes; got {len(deviations)}."
            )

    def validate_model_compatibility(self, teacher, student):
        super().validate_model_compatibility(teacher, student)
        for names in layer_pairs(self, teacher, student):
            for side, model, name in zip(
                ("teacher", "student"), (teacher, student), names, strict=True
            ):
                self._check_logits(side, model, name)
        if self.normalize:
            self._check_adapted()

    def _check_logits(self, side, model, name):
        part = model
        if name is not None:
            part = keras.Model(model.inputs, layer_outputs(model)[id(model.get_layer(name))])
        kinds = {"softmax", "sigmoid"}.intersection(output_activations(part))
        if kinds:
            where = "" if name is None else f", layer {name!r},"
            raise ValueError(
                f"{validation.prefix(self)}{side} '{model.name}'{where} must give logits, but its "
                f"last activation is {kinds.pop()}. Name the layer before it as "
                f"`{side}_layer_name`, or copy the weights to a model whose last layer has no "
                "activation (and use a loss with from_logits=True); LogitsDistillation takes "
                "probabilities."
            )

    def get_config(self):
        config = super().get_config()
        del config["adapter"]
        return {
            **config,
            "normalize": self.normalize,
            "standard_deviation": self.standard_deviation,
        }
