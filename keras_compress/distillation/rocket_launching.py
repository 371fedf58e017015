"""RocketLaunching: a light net trained together with a booster that shares its lower layers."""

import keras
from keras import ops

from keras_compress import matching, validation
from keras_compress.call_graph import Rebuilder
from keras_compress.convert import check_graph
from keras_compress.distillation.distiller import Distiller
from keras_compress.distillation.outputs import check_logits
from keras_compress.distillation.stage import Stage
from keras_compress.distillation.terms import OUTPUT


@keras.saving.register_keras_serializable(package="keras_compress")
class RocketLaunching(Distiller):
    """Trains a light net and a booster net that share layers, from scratch and together.

    The loss is `hard(light) + hard(booster) + hint_weight * ||z_light - z_booster||^2`, the last
    summed over the logits `z` and averaged over the batch, plus the regularizers of both. The
    gradient of the hint is blocked at the booster's logits: it moves the light net, shared layers
    included, and leaves the booster's own layers to the labels.

    The light net alone is deployed: `rocket.student` is the model that was given as `light`.

    Shared layers run for each of the two nets. What they have in common is computed once where the
    compiler sees it (XLA does); their batch statistics move twice a step, and dropout in them draws
    twice. `fit` logs `student_loss` (light), `teacher_loss` (booster) and `hint_loss`, unweighted.

    Args:
        light: The net to deploy: a built Sequential or functional model that gives logits.
        booster: A deeper or wider one of the same classes. It contains layers of `light`, the same
            objects, and others of its own.
        hint_weight: Weight of the hint, 0 or more.
        name: Name of the model.
        **kwargs: `dtype`, as in `kc.distillation.Distiller`.

    Raises:
        ValueError: if the nets share no weights or the booster has none of its own, or if they do
            not give logits of the same classes.

    Reference:
        G. Zhou, Y. Fan, R. Cui, W. Bian, X. Zhu, K. Gai, "Rocket Launching: A Universal and
        Efficient Framework for Training Well-performing Light Net", 2018.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> inputs = keras.Input((16,))
    >>> low = keras.layers.Dense(8, activation="relu")(inputs)
    >>> light = keras.Model(inputs, keras.layers.Dense(3)(low))
    >>> deep = keras.layers.Dense(64, activation="relu")(low)
    >>> booster = keras.Model(inputs, keras.layers.Dense(3)(deep))
    >>> rocket = kc.distillation.RocketLaunching(light, booster, hint_weight=0.1)
    >>> rocket.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = rocket.fit(np.ones((32, 16)), np.zeros((32,)), verbose=0)
    >>> rocket.student is light
    True
    """

    def __init__(self, light, booster, hint_weight=0.1, *, name="rocket_launching", **kwargs):
        hint_weight = validation.number("hint_weight", hint_weight, 0, owner="RocketLaunching")
        for model in (light, booster):
            check_graph(model, "RocketLaunching")
        check_logits("RocketLaunching", light=light, booster=booster)
        own = {id(v) for v in light.variables}
        if not any(id(v) in own for v in booster.variables):
            raise ValueError(
                f"RocketLaunching: light '{light.name}' and booster '{booster.name}' must share "
                "layers, the same objects called in both; got none with weights. For nets that "
                "have nothing in common use kc.distillation.Distiller(train_teacher=True)."
            )
        if all(id(v) in own for v in booster.trainable_variables):
            raise ValueError(
                f"RocketLaunching: booster '{booster.name}' must have layers of its own to train; "
                f"all of its weights are those of light '{light.name}'."
            )
        super().__init__(booster, light, stages=[Stage()], train_teacher=True, name=name, **kwargs)
        self.hint_weight = hint_weight
        self.hint_loss_tracker = keras.metrics.Mean(name="hint_loss")

    def extra_loss(self, batch):
        # The booster's outputs among its features are blocked for gradients.
        light, booster = batch.y_pred, batch.teacher_features[OUTPUT]
        difference = ops.cast(light, "float32") - ops.cast(booster, "float32")
        hint = ops.mean(ops.sum(ops.square(difference), axis=-1))
        self.hint_loss_tracker.update_state(hint, ops.shape(light)[0])
        return self.hint_weight * hint

    def get_config(self):
        config = super().get_config()
        own = {name: config[name] for name in ("name", "trainable", "dtype")}
        return {
            **own,
            "light": config["student"],
            "booster": config["teacher"],
            "hint_weight": self.hint_weight,
            # Keras makes two layers of one that is in both configurations.
            "shared": _shared(self.student, self.teacher),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        light, booster = (
            keras.saving.deserialize_keras_object(config[side]) for side in ("light", "booster")
        )
        leaves = [matching.leaf_layers(model) for model in (light, booster)]
        # Without values: those of the shared layer are its own.
        changes = {id(leaves[1][b]): (leaves[0][a], []) for a, b in config.pop("shared")}
        return cls(**{**config, "light": light, "booster": Rebuilder(booster, changes).run()})


def _shared(light, booster):
    """Places of the shared layers among those of each net, as pairs."""
    places = {id(layer): place for place, layer in enumerate(matching.leaf_layers(light))}
    return [
        [places[id(layer)], place]
        for place, layer in enumerate(matching.leaf_layers(booster))
        if id(layer) in places
    ]
