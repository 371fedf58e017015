"""AttentionTransfer: where the teacher looks."""

import keras
from keras import ops, tree

from keras_compress import validation
from keras_compress.distillation.feature_loss import FeatureLoss
from keras_compress.distillation.feature_maps import check_maps
from keras_compress.distillation.input_derivatives import check_inputs, input_gradient


@keras.saving.register_keras_serializable(package="keras_compress")
class AttentionTransfer(FeatureLoss):
    """Distance of attention maps, `|| Q_S / ||Q_S|| - Q_T / ||Q_T|| ||` with `Q = sum_c |A_c|^p`.

    Sum over the pairs of layers, mean of the batch. Channel counts may differ; a student's image
    map of another height and width is resized (bilinear) to the teacher's after the sum over
    channels. A scale of the features does not matter. The paper weighs it with `beta / 2`: see
    `distillation_loss_weights`.

    In the mode `"gradient"`, what is attended to is what the loss on the labels is sensitive to:
    `|| J_S - J_T ||` with the gradient `J = dL/dx` of a sample's hard loss by the inputs, of both
    models in inference mode. It needs labels, `kc.distillation.Distiller`, and the TensorFlow or
    JAX backend, and costs a second backward pass.

    Args:
        teacher_layer_name: Name or glob of the teacher's layers, with outputs
            `(batch, ..., channels)` and at least one axis between.
        student_layer_name: The same for the student.
        p: Power of the activations, at least 1: the larger, the more the strongest ones count.
        mode: `"activation"`, or `"gradient"` (without layer names).

    Raises:
        ValueError: see `FeatureLoss`; also for features without spatial axes, and in gradient mode
            for inputs that differ or are integers.

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

    def __init__(self, teacher_layer_name=None, student_layer_name=None, p=2, mode="activation"):
        super().__init__(teacher_layer_name, student_layer_name, adapter=None)
        self.p = validation.number("p", p, 1, owner=self)
        self.mode = validation.one_of("mode", mode, ("activation", "gradient"), owner=self)
        if mode == "gradient" and (teacher_layer_name, student_layer_name) != (None, None):
            raise ValueError(
                f"{validation.prefix(self)}mode='gradient' compares gradients by the inputs and "
                f"takes no layers; got teacher_layer_name={teacher_layer_name!r}, "
                f"student_layer_name={student_layer_name!r}."
            )

    @property
    def needs_models(self):
        """Whether it calls the models, see `ModelLoss`."""
        return self.mode == "gradient"

    def validate_model_compatibility(self, teacher, student):
        super().validate_model_compatibility(teacher, student)
        if self.needs_models:
            for model in (teacher, student):
                check_inputs(model, self)

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        if self.needs_models:
            raise ValueError(
                f"{validation.prefix(self)}mode='gradient' needs the models, not only what they "
                "give; use kc.distillation.Distiller."
            )
        return super().compute_loss(teacher_outputs, student_outputs, **kwargs)

    def model_loss(self, teacher, student, batch):
        """The loss in gradient mode, see `ModelLoss`."""
        if batch.y is None or batch.hard_loss is None:
            raise ValueError(
                f"{validation.prefix(self)}mode='gradient' needs labels, and a `loss` in compile()."
            )
        target = ops.stop_gradient(self._gradients(teacher, batch.teacher_inputs, batch))
        gradients = self._gradients(student, batch.student_inputs, batch)
        if target.shape[1] != gradients.shape[1]:
            raise ValueError(
                f"{validation.prefix(self)}mode='gradient' needs equal inputs; the teacher has "
                f"{target.shape[1]} values a sample, the student {gradients.shape[1]}."
            )
        return ops.mean(_norm(gradients - target)[:, 0])

    def _gradients(self, model, inputs, batch):
        """Gradient of each sample's own loss, `(batch, values)`."""
        inputs = tree.map_structure(lambda x: ops.cast(x, "float32"), inputs)
        gradients = tree.flatten(
            input_gradient(lambda x: batch.hard_loss(batch.y, model(x)), inputs)
        )
        rows = [ops.reshape(g, (ops.shape(g)[0], -1)) for g in gradients]
        # Of the mean of the batch: a sample's own has it times the number of samples.
        return ops.concatenate(rows, axis=1) * ops.cast(ops.shape(rows[0])[0], "float32")

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
        check_maps(self, "attention maps", teacher_shape, student_shape)

    def get_config(self):
        config = super().get_config()
        del config["adapter"]
        return {**config, "p": self.p, "mode": self.mode}


def _normalize(attention):
    flat = ops.reshape(attention, (ops.shape(attention)[0], -1))
    return flat / ops.maximum(_norm(flat), 1e-12)


def _norm(rows):
    squares = ops.sum(ops.square(rows), axis=1, keepdims=True)
    # The square root has no slope at 0: equal maps, and maps of dead units, get the gradient 0.
    live = ops.greater(squares, 0.0)
    return ops.where(live, ops.sqrt(ops.where(live, squares, 1.0)), 0.0)
