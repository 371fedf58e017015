"""LearningWithoutForgetting: a new task for a trained model, without the data of the old one."""

import keras
from keras import tree

from keras_compress import matching, validation
from keras_compress.convert import check_graph, rebuild
from keras_compress.distillation.arguments import soft_targets
from keras_compress.distillation.distiller import Distiller
from keras_compress.distillation.logits_distillation import LogitsDistillation
from keras_compress.distillation.pairs import layer_outputs
from keras_compress.distillation.stage import Stage


@keras.saving.register_keras_serializable(package="keras_compress")
class LearningWithoutForgetting(Distiller):
    """Adds a task to a trained model, and trains it on data of the new task only.

    The student is a copy of the model with a second head: its outputs are the list of the old
    outputs and, last, the new head's. The teacher is a frozen copy: what the old head gave for the
    new task's inputs before training is what the student's old head is held to. The loss is
    `alpha * soft + (1 - alpha) * hard`: *soft* Hinton's soft targets on the old outputs, *hard* the
    loss given to `compile`, on the new output. Labels and metrics are of the new task alone. The
    paper's weight of the old task, against 1, is `alpha * temperature^2 / (1 - alpha)`.

    First only the new head is trained, for `warmup_epochs`, then all of the student (but for layers
    that were frozen in the model).

    The teacher runs each step, or once: `kc.distillation.cache_teacher(distiller.teacher, x)`. For
    a third task, give `distiller.student` as the model.

    Args:
        model: A trained Sequential or functional model of logits or probabilities. It is copied,
            and not changed.
        new_head: A layer or a Sequential model, the new task's: from the features to its output.
        temperature: Temperature of the soft targets.
        features: Name of the layer whose output the new head takes; by default it takes what the
            old head does, the model's last layer with weights.
        warmup_epochs: Epochs in which only the new head is trained, 0 or more.
        alpha: Weight of the old task, 0 to 1.
        name: Name of the `Distiller`.
        **kwargs: `dtype`, as in `kc.distillation.Distiller`.

    Raises:
        ValueError: if the model has no graph, `new_head` is no layer or has the name of another
            one, or no layer is called `features`.

    Reference:
        Z. Li, D. Hoiem, "Learning without Forgetting", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((16,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)
    ... ])
    >>> new_head = keras.layers.Dense(5, name="new_head")
    >>> distiller = kc.distillation.LearningWithoutForgetting(model, new_head)
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = distiller.fit(np.ones((32, 16)), np.zeros((32,)), epochs=3, verbose=0)
    >>> old, new = distiller.student.predict(np.ones((4, 16)), verbose=0)
    >>> old.shape, new.shape
    ((4, 3), (4, 5))
    """

    def __init__(
        self,
        model,
        new_head,
        temperature=2.0,
        *,
        features=None,
        warmup_epochs=1,
        alpha=0.5,
        name="learning_without_forgetting",
        **kwargs,
    ):
        owner = "LearningWithoutForgetting"
        check_graph(model, owner)
        validation.number("temperature", temperature, 0, low_open=True, owner=owner)
        warmup_epochs = validation.integer("warmup_epochs", warmup_epochs, 0, 10**9, owner=owner)
        alpha = validation.number("alpha", alpha, 0, 1, high_open=True, owner=owner)
        _check_head(model, new_head)
        teacher, copy = rebuild(model, {}), rebuild(model, {})
        tensor = _features(copy, features)
        inputs = copy.inputs[0] if isinstance(copy, keras.Sequential) else copy.input
        student = keras.Model(inputs, [*copy.outputs, new_head(tensor)], name=model.name)
        # The teacher's, which its configuration tells, are no longer those of the model.
        flags = [layer.trainable for layer in matching.leaf_layers(model)]
        loss = OldOutputs(**soft_targets(temperature, teacher, teacher).get_config())
        stages = [Stage(loss, alpha=alpha)] if alpha else [Stage()]
        if warmup_epochs:
            stages.insert(0, Stage(epochs=warmup_epochs, layers=_leaf_names(new_head)))
        super().__init__(teacher, student, stages=stages, alpha=alpha, name=name, **kwargs)
        self.new_head = new_head
        self.trainable_layers = flags
        self.temperature = float(temperature)
        self.features = features
        self.warmup_epochs = warmup_epochs

    def _hard_loss(self, loss, y, y_pred, sample_weight, size):
        return super()._hard_loss(loss, y, y_pred[-1], sample_weight, size)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred[-1], sample_weight)

    def get_config(self):
        config = super().get_config()
        return {
            **{name: config[name] for name in ("name", "trainable", "dtype", "alpha")},
            # The teacher is the model as it was; the student is made of it again.
            "model": config["teacher"],
            "trainable_layers": self.trainable_layers,
            "new_head": keras.saving.serialize_keras_object(self.new_head),
            "temperature": self.temperature,
            "features": self.features,
            "warmup_epochs": self.warmup_epochs,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for key in ("model", "new_head"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        config["model"].trainable = True
        flags = config.pop("trainable_layers")
        for layer, flag in zip(matching.leaf_layers(config["model"]), flags, strict=True):
            layer.trainable = flag
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_compress")
class OldOutputs(LogitsDistillation):
    """Soft targets for the first outputs of a student: as many as the teacher has.

    Args:
        temperature: As in `LogitsDistillation`.
        teacher_from_logits: The same.
        student_from_logits: The same.
    """

    def validate_model_compatibility(self, teacher, student):
        super().validate_model_compatibility(teacher, teacher)

    def validate_outputs(self, teacher_outputs, student_outputs):
        super().validate_outputs(*_old(teacher_outputs, student_outputs))

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return super().compute_loss(*_old(teacher_outputs, student_outputs))


def _old(teacher_outputs, student_outputs):
    targets = tree.flatten(teacher_outputs)
    return targets, list(student_outputs[: len(targets)])


def _leaf_names(head):
    layers = matching.leaf_layers(head) if isinstance(head, keras.Model) else [head]
    return [layer.name for layer in layers]


def _check_head(model, head):
    prefix = "LearningWithoutForgetting: "
    if not isinstance(head, keras.layers.Layer):
        raise ValueError(
            f"{prefix}`new_head` must be a Keras layer or a Sequential model, such as "
            f"keras.layers.Dense(classes, name='new_head'); got new_head={head!r}."
        )
    leaves = [layer.name for layer in matching.leaf_layers(model)]
    taken = {layer.name for layer in model.layers} | set(leaves)
    clash = sorted(taken.intersection([head.name, *_leaf_names(head)]))
    if clash:
        raise ValueError(
            f"{prefix}model '{model.name}' has a layer {clash[0]!r} already, as `new_head` has; "
            "give the head's layers names of their own, name='new_head'."
        )


def _features(model, name):
    """The tensor that the new head takes."""
    if name is not None:
        layers = {layer.name: layer for layer in model.layers}
        if name not in layers:
            raise ValueError(
                f"LearningWithoutForgetting: model '{model.name}' has no layer "
                f"features={name!r}.{validation.did_you_mean(name, layers)}"
            )
        found = layer_outputs(model).get(id(layers[name]), [])
        if len(found) != 1 or isinstance(found[0], list):
            raise ValueError(
                f"LearningWithoutForgetting: layer features={name!r} of '{model.name}' must give "
                "one tensor and be called once; choose another one."
            )
        return found[0]
    tensor = model.outputs[0]
    while True:
        operation, index, _ = tensor._keras_history
        given = operation._inbound_nodes[index].input_tensors
        if len(given) != 1:
            raise ValueError(
                f"LearningWithoutForgetting: the old head of '{model.name}' is not clear, since "
                f"'{operation.name}' has {len(given)} inputs; name the layer whose output the new "
                "head takes as `features`."
            )
        tensor = given[0]
        if getattr(operation, "weights", ()):
            return tensor
