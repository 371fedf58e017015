"""AdversarialDistiller: a discriminator of logits in place of a fixed distillation loss."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.distillation.distiller import Distiller
from keras_compress.distillation.outputs import check_logits
from keras_compress.distillation.stage import Stage
from keras_compress.distillation.staged_optimizer import OptimizerGroup
from keras_compress.distillation.terms import OUTPUT


@keras.saving.register_keras_serializable(package="keras_compress")
class AdversarialDistiller(Distiller):
    """Trains a student whose logits a discriminator cannot tell from the teacher's.

    The discriminator `D` takes the logits `z` of a sample and says whose they are and, as the
    condition, of which class the sample is:

        L_D = -log P(teacher | z_teacher) - log P(student | z_student)
              - log P(y | z_teacher) - log P(y | z_student)

    The student is trained on the labels, on the teacher's logits, and to be taken for the teacher
    and for the right class:

        L_S = hard + logit_weight * |z_teacher - z_student|
              + adversarial_weight * (-log P(teacher | z_student) - log P(y | z_student))

    (means of the batch; `|.|` is the mean over the classes). Both take their step at once, each
    with its optimizer, and each loss moves its own weights only. `loss` is `L_S`.

    `fit` logs `student_loss` (hard), `logit_loss` and `adversarial_loss`, unweighted,
    `discriminator_loss`, and `discriminator_accuracy`: how often `D` tells teacher from student;
    1/2 is chance, which is its optimum where both give equal logits.

    The trained student is `distiller.student`; `D` is no part of it.

    Args:
        teacher: A trained model that gives logits.
        student: The model to train, built, of the same classes.
        discriminator: A layer or model from logits `(batch, classes)` to
            `(batch, 1 + classes)`: the logit of *teacher*, and the classes' logits. By default two
            hidden layers of 128 units.
        logit_weight: Weight of the distance of logits, 0 or more.
        adversarial_weight: Weight of the adversarial loss, 0 or more.
        name: Name of the model.
        **kwargs: `dtype`, as in `kc.distillation.Distiller`.

    Raises:
        ValueError: if the models do not give logits of the same classes, or the discriminator's
            outputs are no `(batch, 1 + classes)`.

    Reference:
        Z. Xu, Y.-C. Hsu, J. Huang, "Learning Loss for Knowledge Distillation with Conditional
        Adversarial Networks", 2018.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> def net(units):
    ...     return keras.Sequential([
    ...         keras.Input((16,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(3)
    ...     ])
    >>> teacher, student = net(64), net(8)
    >>> distiller = kc.distillation.AdversarialDistiller(teacher, student)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> distiller.compile("adam", loss, discriminator_optimizer="adam")
    >>> history = distiller.fit(np.ones((32, 16)), np.zeros((32,)), verbose=0)
    >>> "discriminator_loss" in history.history
    True
    """

    def __init__(
        self,
        teacher,
        student,
        discriminator=None,
        *,
        logit_weight=1.0,
        adversarial_weight=0.1,
        name="adversarial_distiller",
        **kwargs,
    ):
        owner = "AdversarialDistiller"
        logit_weight = validation.number("logit_weight", logit_weight, 0, owner=owner)
        adversarial_weight = validation.number(
            "adversarial_weight", adversarial_weight, 0, owner=owner
        )
        classes = check_logits(owner, teacher=teacher, student=student)
        discriminator = _check_discriminator(discriminator, classes)
        super().__init__(teacher, student, stages=[Stage()], name=name, **kwargs)
        self.discriminator = discriminator
        self.classes = classes
        self.logit_weight = logit_weight
        self.adversarial_weight = adversarial_weight
        names = ("logit_loss", "adversarial_loss", "discriminator_loss", "discriminator_accuracy")
        self.parts = {part: keras.metrics.Mean(name=part) for part in names}

    def compile(
        self, optimizer="adam", loss=None, metrics=None, discriminator_optimizer="adam", **kwargs
    ):
        """Configures training.

        Args:
            optimizer: Optimizer of the student. An `OptimizerGroup` with one further optimizer
                stands for both.
            loss: The loss on the labels.
            metrics: Metrics of the student's outputs.
            discriminator_optimizer: Optimizer of the discriminator.
            **kwargs: The other arguments of `keras.Model.compile`.

        Raises:
            ValueError: if there is no `loss`.
        """
        # From a file, both are there.
        group = optimizer
        while not isinstance(group, OptimizerGroup) and hasattr(group, "inner_optimizer"):
            group = group.inner_optimizer
        if not isinstance(group, OptimizerGroup):
            group = optimizer = OptimizerGroup(optimizer, [discriminator_optimizer])
        group.assign_to(0, self.discriminator.trainable_variables)
        super().compile(optimizer, loss, metrics, **kwargs)

    def extra_loss(self, batch):
        teacher = ops.cast(batch.teacher_features[OUTPUT], "float32")
        student = ops.cast(batch.y_pred, "float32")
        distance = ops.mean(ops.abs(teacher - student))
        # The student's part: the discriminator's weights are constants.
        judge = self.discriminator
        fixed = [ops.stop_gradient(v) for v in judge.trainable_variables]
        output, _ = judge.stateless_call(fixed, judge.non_trainable_variables, student)
        adversarial = ops.mean(self._losses_of(output, batch.y, True))
        # The discriminator's part: the logits are.
        training = batch.training
        real = judge(teacher, training=training)
        fake = judge(ops.stop_gradient(student), training=training)
        own = ops.mean(self._losses_of(real, batch.y, True))
        own = own + ops.mean(self._losses_of(fake, batch.y, False))
        # At 0, where it cannot tell, it is right for one of the two.
        right = (_share_above(real) + 1.0 - _share_above(fake)) / 2
        values = (distance, adversarial, own, right)
        for part, value in zip(self.parts.values(), values, strict=True):
            part.update_state(value, ops.shape(student)[0])
        total = self.logit_weight * distance + self.adversarial_weight * adversarial
        # Its gradient without its value: `loss` is the student's, to stop or to checkpoint by.
        return total + own - ops.stop_gradient(own)

    def _losses_of(self, output, y, teacher):
        """`-log P(source) - log P(class)` of each sample."""
        output = ops.cast(output, "float32")
        source = ops.softplus(-output[:, 0] if teacher else output[:, 0])
        log_classes = ops.log_softmax(output[:, 1:], axis=-1)
        return source - ops.sum(self._one_hot(y) * log_classes, axis=-1)

    def _one_hot(self, y):
        y = ops.convert_to_tensor(y)
        if len(y.shape) == 2 and y.shape[-1] == self.classes:
            return ops.cast(y, "float32")
        if len(y.shape) > 2 or len(y.shape) == 2 and y.shape[-1] != 1:
            raise ValueError(
                "AdversarialDistiller: labels must be classes (batch,) or one-hot vectors "
                f"(batch, {self.classes}); got shape {tuple(y.shape)}."
            )
        return ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), self.classes)

    def get_config(self):
        config = super().get_config()
        kept = ("name", "trainable", "dtype", "teacher", "student")
        return {
            **{name: config[name] for name in kept},
            "discriminator": keras.saving.serialize_keras_object(self.discriminator),
            "logit_weight": self.logit_weight,
            "adversarial_weight": self.adversarial_weight,
        }

    @classmethod
    def from_config(cls, config):
        restore = keras.saving.deserialize_keras_object
        parts = ("teacher", "student", "discriminator")
        return cls(**{**config, **{part: restore(config[part]) for part in parts}})


def _share_above(output):
    source = output[:, 0]
    return ops.mean(ops.cast(ops.greater(source, 0), "float32"))


def _check_discriminator(discriminator, classes):
    prefix = "AdversarialDistiller: "
    if discriminator is None:
        # Not the global policy: half precision would do an adversary no good.
        discriminator = keras.Sequential(
            [
                keras.Input((classes,)),
                keras.layers.Dense(128, activation="leaky_relu", dtype="float32"),
                keras.layers.Dense(128, activation="leaky_relu", dtype="float32"),
                keras.layers.Dense(1 + classes, dtype="float32"),
            ],
            name="discriminator",
        )
    if not isinstance(discriminator, keras.layers.Layer):
        raise ValueError(
            f"{prefix}`discriminator` must be a Keras layer or model, or None; got "
            f"discriminator={discriminator!r}."
        )
    if not discriminator.built:
        discriminator.build((None, classes))
    try:
        shape = discriminator.compute_output_shape((None, classes))
    except ValueError as error:
        shape = error
    if shape != (None, 1 + classes):
        raise ValueError(
            f"{prefix}`discriminator` must lead from logits (batch, {classes}) to (batch, "
            f"{1 + classes}): the logit of 'teacher' and those of the classes; got {shape} from "
            f"'{discriminator.name}'."
        )
    if not discriminator.trainable_variables:
        raise ValueError(f"{prefix}`discriminator` '{discriminator.name}' has nothing to train.")
    return discriminator
