"""LogitsDistillation: Hinton's soft targets, from logits or from probabilities."""

import keras
from keras import ops, tree

from keras_compress import validation

# Smallest positive value of the dtype: where a probability underflowed, its logarithm stops here.
_SMALLEST = {"float16": 6e-8, "bfloat16": 1.2e-38, "float32": 1.2e-38, "float64": 2.3e-308}


@keras.saving.register_keras_serializable(package="keras_compress")
class LogitsDistillation(keras.distillation.LogitsDistillation):
    """Soft targets: `T^2 KL(softmax(z_teacher / T) || softmax(z_student / T))`, mean of the batch.

    `T^2` keeps the gradient's scale when `T` changes; for large `T` and centred logits the gradient
    with respect to a sample's `z_student` tends to `(z_student - z_teacher) / classes`.

    A `keras.distillation.LogitsDistillation` that computes in float32 under mixed precision, takes
    outputs that are probabilities, and refuses models that it cannot serve. It runs in Keras's
    `Distiller` too. (Keras's own, as of 3.15, takes its default `loss="kl_divergence"` for a
    function of the raw logits, without softmax and `T^2`; there it needs
    `loss=keras.losses.KLDivergence()`.) Several outputs are summed.

    A model that ends in a softmax needs no surgery: `log p` differs from the logits by a constant
    of each sample, so that `softmax(log p / T)` is the softened distribution exactly. Only classes
    whose probability underflows to zero are lost.

    Args:
        temperature: `T`, above 0.
        teacher_from_logits: Whether the teacher gives logits (or log-probabilities); `False`:
            probabilities.
        student_from_logits: The same for the student.

    Raises:
        ValueError: for a temperature that is not positive; with a `Distiller`, if the models have
            different numbers of classes, only one, or outputs of another kind than was said.

    Reference:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> loss = kc.distillation.LogitsDistillation(temperature=2.0)
    >>> teacher, student = np.array([[4.0, 0.0]]), np.array([[0.0, 0.0]])
    >>> round(float(loss.compute_loss(teacher, student)), 4)
    1.3113
    """

    def __init__(
        self,
        temperature=4.0,
        *,
        teacher_from_logits=True,
        student_from_logits=True,
    ):
        temperature = validation.number("temperature", temperature, 0, low_open=True, owner=self)
        super().__init__(temperature)
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits

    def validate_model_compatibility(self, teacher, student):
        for side, model in (("teacher", teacher), ("student", student)):
            self._check_outputs(side, model)
        shapes = [_output_shapes(teacher), _output_shapes(student)]
        if None not in shapes and shapes[0] != shapes[1]:
            raise ValueError(
                f"{validation.prefix(self)}teacher and student must have the same classes: teacher "
                f"'{teacher.name}' gives {_text(shapes[0])}, student '{student.name}' "
                f"{_text(shapes[1])} outputs. Give the student as many as the teacher has, or "
                "distil features only (Hint, AttentionTransfer)."
            )

    def _check_outputs(self, side, model):
        from_logits = getattr(self, f"{side}_from_logits")
        for activation in output_activations(model):
            if activation == "sigmoid" or activation == ("softmax" if from_logits else "linear"):
                remedy = (
                    "take the sigmoid off and put it in the loss, with two outputs for two classes"
                    if activation == "sigmoid"
                    else f"say {side}_from_logits={not from_logits}"
                )
                wanted = "logits" if from_logits else "softmax probabilities"
                raise ValueError(
                    f"{validation.prefix(self)}{side}_from_logits={from_logits} means that "
                    f"{side} '{model.name}' gives {wanted}, but its last activation is "
                    f"{activation}; {remedy}."
                )
        if 1 in (_output_shapes(model) or ()):
            raise ValueError(
                f"{validation.prefix(self)}a softmax over one output is constant, but {side} "
                f"'{model.name}' has one; use two outputs for two classes."
            )

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        losses = tree.map_structure(self._soft_loss, teacher_outputs, student_outputs)
        return sum(tree.flatten(losses))

    def _soft_loss(self, teacher, student):
        return ops.mean(self.divergences(teacher, student))

    def divergences(self, teacher, student):
        """The formula, before the mean.

        Args:
            teacher: Outputs of the teacher, `(..., classes)`.
            student: Outputs of the student.

        Returns:
            Tensor `(...)`.
        """
        target = ops.log_softmax(_logits(teacher, self.teacher_from_logits) / self.temperature)
        output = ops.log_softmax(_logits(student, self.student_from_logits) / self.temperature)
        divergence = ops.sum(ops.exp(target) * (target - output), axis=-1)
        return self.temperature**2 * divergence

    def get_config(self):
        return {
            "temperature": self.temperature,
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _logits(outputs, from_logits):
    outputs = ops.convert_to_tensor(outputs)
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    outputs = ops.cast(outputs, "float64" if dtype == "float64" else "float32")
    return outputs if from_logits else ops.log(ops.maximum(outputs, _SMALLEST[dtype]))


def _output_shapes(model):
    """Last axis of each output, or `None` for a model without a graph."""
    outputs = getattr(model, "outputs", None)
    return [tensor.shape[-1] for tensor in outputs] if outputs else None


def _text(sizes):
    return " and ".join(map(str, sizes))


def output_activations(model):
    """The last activation of each output of a model.

    Args:
        model: A Keras model.

    Returns:
        List with `"softmax"`, `"sigmoid"`, `"linear"` or `"unknown"` for each output; empty for a
        model without a graph.
    """
    return [_activation(tensor) for tensor in getattr(model, "outputs", None) or ()]


def _activation(tensor):
    operation, node, index = tensor._keras_history
    if isinstance(operation, keras.Model):
        outputs = getattr(operation, "outputs", None)
        return _activation(outputs[index]) if outputs else "unknown"
    # Both `keras.layers.Softmax` and the plain operation `ops.softmax`.
    if type(operation).__name__ in ("Softmax", "Sigmoid"):
        return type(operation).__name__.lower()
    if isinstance(operation, keras.layers.Average):
        # The mean of probabilities is one, and so it is for logits.
        kinds = {_activation(tensor) for tensor in operation._inbound_nodes[node].input_tensors}
        return kinds.pop() if len(kinds) == 1 else "unknown"
    activation = getattr(operation, "activation", None)
    if activation in (keras.activations.softmax, keras.activations.sigmoid):
        return activation.__name__
    linear = activation is keras.activations.linear
    shapes_only = (keras.layers.Reshape, keras.layers.Flatten, keras.layers.Identity)
    if isinstance(operation, shapes_only) or (
        linear and isinstance(operation, keras.layers.Activation)
    ):
        return _activation(operation._inbound_nodes[node].input_tensors[0])
    return "linear" if linear or hasattr(operation, "kernel") and activation is None else "unknown"
