"""Sobolev: the student imitates the teacher's values and its derivatives by the inputs."""

import keras
from keras import ops, tree

from keras_compress import validation
from keras_compress.distillation.input_derivatives import check_inputs, directional_derivative
from keras_compress.distillation.logits_distillation import output_activations
from keras_compress.distillation.model_loss import ModelLoss


@keras.saving.register_keras_serializable(package="keras_compress")
class Sobolev(ModelLoss):
    """Squared distance of outputs and of their directional derivatives, mean of the batch.

    With a random unit vector `v` for each sample, drawn anew each batch, order 1 adds
    `|| D_x student v - D_x teacher v ||^2`, on average `|| J_student - J_teacher ||_F^2 / d` for
    Jacobians by `d` inputs, and order 2 the same for the second derivative along two such vectors.
    Derivatives are taken by forward mode, of the models in inference mode: each costs about one
    more forward pass of either model, and its backward pass for the student. TensorFlow and JAX.

    Args:
        order: Highest order of the derivatives, 1 or 2.
        projections: Number of random vectors to average over.
        weight: Weight of the derivatives, a number or one for each order.
        value_weight: Weight of the outputs' own distance.
        outputs: `"raw"`, or `"log_softmax"` to compare log-probabilities of models that give
            logits.
        seed: Integer, for vectors that can be repeated.

    Raises:
        ValueError: for numbers out of range; with a `Distiller`, for outputs of different shapes,
            or a model whose inputs are integers or go into an embedding.

    Reference:
        W. M. Czarnecki, S. Osindero, M. Jaderberg, G. Swirszcz, R. Pascanu, "Sobolev Training for
        Neural Networks", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> def net(units):
    ...     return keras.Sequential([
    ...         keras.Input((2,)),
    ...         keras.layers.Dense(units, activation="tanh"),
    ...         keras.layers.Dense(1),
    ...     ])
    >>> loss = kc.distillation.Sobolev(order=1, weight=0.5)
    >>> distiller = kc.distillation.Distiller(net(32), net(4), loss, alpha=1.0)
    >>> distiller.compile("adam")
    >>> history = distiller.fit(np.ones((16, 2)), verbose=0)
    """

    def __init__(
        self, order=1, projections=1, weight=1.0, value_weight=1.0, outputs="raw", seed=None
    ):
        self.order = validation.integer("order", order, 1, 2, owner=self)
        self.projections = validation.positive_int("projections", projections, owner=self)
        weights = list(weight) if isinstance(weight, (list, tuple)) else [weight] * self.order
        if len(weights) != self.order:
            raise ValueError(
                f"Sobolev: `weight` must be a number, or one for each of the {self.order} orders; "
                f"got weight={weight!r}."
            )
        self.weight = [validation.number("weight", w, 0, owner=self) for w in weights]
        self.value_weight = validation.number("value_weight", value_weight, 0, owner=self)
        self.outputs = validation.one_of("outputs", outputs, ("raw", "log_softmax"), owner=self)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def validate_model_compatibility(self, teacher, student):
        for model in (teacher, student):
            check_inputs(model, self)
            if self.outputs == "log_softmax" and "softmax" in output_activations(model):
                raise ValueError(
                    f"Sobolev: outputs='log_softmax' takes logits, but '{model.name}' ends in a "
                    "softmax; take it off, or use outputs='raw'."
                )
        shapes = [
            [tuple(t.shape[1:]) for t in getattr(model, "outputs", None) or ()]
            for model in (teacher, student)
        ]
        if all(shapes) and (shapes[0] != shapes[1] or len(shapes[0]) > 1):
            raise ValueError(
                "Sobolev: teacher and student must have one output of the same shape; teacher "
                f"'{teacher.name}' has {shapes[0]}, student '{student.name}' {shapes[1]}."
            )

    def model_loss(self, teacher, student, batch):
        total = 0.0
        for _ in range(self.projections):
            vectors = [
                _unit_vectors(batch.student_inputs, self.seed_generator) for _ in self.weight
            ]
            targets = self._derivatives(teacher, batch.teacher_inputs, vectors)
            outputs = self._derivatives(student, batch.student_inputs, vectors)
            weights = [self.value_weight, *self.weight]
            for weight, target, output in zip(weights, targets, outputs, strict=True):
                difference = ops.square(ops.stop_gradient(target) - output)
                distance = ops.sum(difference, axis=tuple(range(1, len(difference.shape))))
                total = total + weight * ops.mean(distance)
        return total / self.projections

    def _derivatives(self, model, inputs, vectors):
        """The outputs, and their derivatives of each order along the vectors."""

        def values(x):
            outputs = ops.cast(model(x), "float32")
            return ops.log_softmax(outputs) if self.outputs == "log_softmax" else outputs

        inputs = tree.map_structure(lambda x: ops.cast(x, "float32"), inputs)
        if self.order == 1:
            return directional_derivative(values, inputs, vectors[0])

        def first(x):
            return ops.stack(directional_derivative(values, x, vectors[0]))

        lower, higher = directional_derivative(first, inputs, vectors[1])
        return lower[0], lower[1], higher[1]

    def get_config(self):
        return {
            "order": self.order,
            "projections": self.projections,
            "weight": self.weight,
            "value_weight": self.value_weight,
            "outputs": self.outputs,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _unit_vectors(inputs, seed):
    """A random direction for each sample, of length 1 over all inputs."""
    draws = [keras.random.normal(ops.shape(x), seed=seed) for x in tree.flatten(inputs)]
    squares = [ops.sum(ops.square(d), axis=tuple(range(1, len(d.shape)))) for d in draws]
    length = ops.sqrt(ops.maximum(sum(squares[1:], squares[0]), 1e-12))
    units = [d / ops.reshape(length, (-1,) + (1,) * (len(d.shape) - 1)) for d in draws]
    return tree.pack_sequence_as(inputs, units)
