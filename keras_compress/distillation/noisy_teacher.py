"""NoisyTeacher: a loss on the teacher's outputs with noise."""

import keras
from keras import ops, tree

from keras_compress import validation


@keras.saving.register_keras_serializable(package="keras_compress")
class NoisyTeacher(keras.distillation.DistillationLoss):
    """A distillation loss whose teacher is perturbed: `z' = (1 + xi) z`, `xi ~ N(0, sigma^2)`.

    Each sample of a batch is perturbed with probability `fraction`, each of its logits by a draw of
    its own, anew in every batch. It regularises the student as many teachers would: with
    `LogitRegression(normalize=False)` the loss grows on average by
    `fraction * sigma^2 * mean(z^2)`.

    `kc.distillation.Distiller` leaves the noise out when it evaluates. Keras's own `Distiller` does
    not tell a loss, so that the noise stays, and under JAX is the same in each batch: use ours.

    Args:
        base_loss: The loss, a `keras.distillation.DistillationLoss` without an adapter:
            `LogitRegression` in the paper.
        fraction: Probability that a sample is perturbed, 0 to 1.
        sigma: Standard deviation of the noise, relative to the logit.
        seed: Integer, for noise that can be repeated.

    Raises:
        ValueError: for arguments that do not make sense.

    Reference:
        B. B. Sau, V. N. Balasubramanian, "Deep Model Compression: Distilling Knowledge from Noisy
        Teachers", 2016.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> base = kc.distillation.LogitRegression(normalize=False)
    >>> loss = kc.distillation.NoisyTeacher(base, fraction=0.5, sigma=0.3, seed=0)
    >>> logits = np.ones((4, 10))
    >>> float(loss.compute_loss(logits, logits)) > 0
    True
    >>> float(loss.compute_loss(logits, logits, training=False))
    0.0
    """

    def __init__(self, base_loss, fraction=0.5, sigma=0.3, seed=None):
        if not isinstance(base_loss, keras.distillation.DistillationLoss):
            raise ValueError(
                f"{validation.prefix(self)}`base_loss` must be a keras.distillation."
                f"DistillationLoss, such as LogitRegression(); got base_loss={base_loss!r}."
            )
        if getattr(base_loss, "adapter", None) is not None:
            raise ValueError(
                f"{validation.prefix(self)}`base_loss` must compare outputs as they are, "
                f"adapter=None; got adapter={base_loss.adapter!r}."
            )
        self.base_loss = base_loss
        self.fraction = validation.number("fraction", fraction, 0, 1, owner=self)
        self.sigma = validation.number("sigma", sigma, 0, owner=self)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def teacher_layer_name(self):
        """The layer that the loss looks at, see `FeatureLoss`; `None`: the output."""
        return getattr(self.base_loss, "teacher_layer_name", None)

    @property
    def student_layer_name(self):
        """The same for the student."""
        return getattr(self.base_loss, "student_layer_name", None)

    def validate_model_compatibility(self, teacher, student):
        self.base_loss.validate_model_compatibility(teacher, student)

    def validate_outputs(self, teacher_outputs, student_outputs):
        self.base_loss.validate_outputs(teacher_outputs, student_outputs)

    def compute_loss(self, teacher_outputs, student_outputs, training=True, **kwargs):
        if training:
            teacher_outputs = tree.map_structure(self.perturb, teacher_outputs)
        return self.base_loss.compute_loss(
            teacher_outputs, student_outputs, training=training, **kwargs
        )

    def perturb(self, logits):
        """The teacher's logits with noise.

        Args:
            logits: Float tensor `(batch, ...)`.

        Returns:
            Tensor of that shape.
        """
        logits = ops.convert_to_tensor(logits)
        shape = ops.shape(logits)
        rows = (shape[0],) + (1,) * (len(shape) - 1)
        draw = keras.random.uniform(rows, dtype="float32", seed=self.seed_generator)
        chosen = ops.cast(ops.less(draw, self.fraction), logits.dtype)
        noise = keras.random.normal(
            shape, stddev=self.sigma, dtype=logits.dtype, seed=self.seed_generator
        )
        return logits * (1.0 + chosen * noise)

    def get_config(self):
        return {
            "base_loss": keras.saving.serialize_keras_object(self.base_loss),
            "fraction": self.fraction,
            "sigma": self.sigma,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        base_loss = keras.saving.deserialize_keras_object(config["base_loss"])
        return cls(**{**config, "base_loss": base_loss})
