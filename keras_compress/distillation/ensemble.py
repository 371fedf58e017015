"""Ensemble: several models as one teacher."""

import keras

from keras_compress.distillation.logits_distillation import output_activations


@keras.saving.register_keras_serializable(package="keras_compress")
class Ensemble(keras.Model):
    """A model whose output is the mean of several models' outputs.

    Probabilities are averaged as such, logits as logits (the geometric mean of the probabilities).
    The members are not copied.

    Args:
        models: List of at least one functional or Sequential model, with different names, equal
            inputs and equal outputs.
        name: Name of the ensemble.

    Raises:
        ValueError: if they do not fit together, or some end in a softmax and some do not.

    Reference:
        C. Bucila, R. Caruana, A. Niculescu-Mizil, "Model Compression", 2006.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> models = [
    ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name=f"member{i}")
    ...     for i in range(2)
    ... ]
    >>> teacher = kc.distillation.Ensemble(models)
    >>> x = np.ones((1, 4))
    >>> mean = (models[0](x) + models[1](x)) / 2
    >>> bool(np.allclose(teacher(x), mean))
    True
    """

    def __init__(self, models, name="ensemble"):
        models = self._checked(models)
        inputs = keras.tree.map_structure(
            lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype),
            _inputs(models[0]),
        )
        members = [model(inputs) for model in models]
        if len(members) == 1:
            outputs = members[0]
        else:
            outputs = keras.tree.map_structure(
                lambda *tensors: keras.layers.Average()(list(tensors)), *members
            )
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.members = models

    def _checked(self, models):
        models = list(models) if isinstance(models, (list, tuple)) else [models]
        wrong = [m for m in models if not isinstance(m, keras.Model) or not m.inputs]
        if wrong or not models:
            raise ValueError(
                "Ensemble: `models` must be a list of at least one built Sequential or functional "
                f"model; got models={wrong or models!r}."
            )
        names = [model.name for model in models]
        if len(set(names)) < len(names):
            raise ValueError(
                f"Ensemble: the models need different names; got {names}. Build them with `name=`, "
                "or wrap one: keras.Model(model.inputs, model.outputs, name=...)."
            )
        for model in models[1:]:
            for what in ("inputs", "outputs"):
                shapes = [
                    [tuple(t.shape[1:]) for t in getattr(m, what)] for m in (models[0], model)
                ]
                if shapes[0] != shapes[1]:
                    raise ValueError(
                        f"Ensemble: all models need the same {what}; '{names[0]}' has "
                        f"{shapes[0]}, '{model.name}' {shapes[1]}."
                    )
        kinds = [[kind == "softmax" for kind in output_activations(model)] for model in models]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(
                "Ensemble: some models give softmax probabilities and some do not "
                f"({dict(zip(names, map(output_activations, models), strict=True))}), whose mean "
                "is neither; add a keras.layers.Softmax to the others."
            )
        return models

    def get_config(self):
        return {
            "models": [keras.saving.serialize_keras_object(model) for model in self.members],
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        models = [keras.saving.deserialize_keras_object(model) for model in config["models"]]
        return cls(models, name=config["name"])


def _inputs(model):
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input
