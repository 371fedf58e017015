"""Stage: a part of a distillation with losses of its own."""

import keras

from keras_compress import validation
from keras_compress.distillation.arguments import check_losses


@keras.saving.register_keras_serializable(package="keras_compress")
class Stage:
    """Some epochs of a `kc.distillation.Distiller` with their own losses and weights.

    Stages run in order within one `fit`. Layers of the student that no loss of the stage depends on
    are left exactly as they are: no weight decay, no momentum and no regularizer moves their
    weights, and their batch statistics stay.

    Args:
        losses: A `keras.distillation.DistillationLoss` or a list of them; `None`: none, the stage
            trains on the labels alone. The same object in two stages keeps its adapters.
        loss_weights: One number for each loss, or a pair `(start, end)` that is gone through
            linearly from the stage's first epoch to its last; by default all 1.
        epochs: Epochs of the stage; `None`, in the last stage only: all that are left.
        alpha: Weight of the distillation losses against the labels, 0 to 1, or a pair
            `(start, end)` as above; 1: labels are not used. By default 1 where all losses look at
            layers inside the student (hints), else the Distiller's.
        layers: Names or globs of the student's layers to train; `None`: all that the losses
            depend on.

    Raises:
        ValueError: for an empty list of losses, or numbers out of range.

    Reference:
        A. Romero, N. Ballas, S. Ebrahimi Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints
        for Thin Deep Nets", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> def net(units):
    ...     return keras.Sequential([
    ...         keras.Input((16,)),
    ...         keras.layers.Dense(units, activation="relu", name="mid"),
    ...         keras.layers.Dense(3),
    ...     ])
    >>> distiller = kc.distillation.Distiller(
    ...     net(64),
    ...     net(8),
    ...     stages=[
    ...         kc.distillation.Stage(kc.distillation.Hint("mid", "mid"), epochs=2),
    ...         kc.distillation.Stage(
    ...             kc.distillation.LogitsDistillation(4.0), epochs=3, alpha=(0.8, 0.5)
    ...         ),
    ...     ],
    ... )
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = distiller.fit(np.ones((32, 16)), np.zeros((32,)), verbose=0)
    >>> history.epoch
    [0, 1, 2, 3, 4]
    >>> distiller.stage
    1
    """

    def __init__(self, losses=None, loss_weights=None, epochs=None, alpha=None, layers=None):
        self.losses = [] if losses is None else check_losses("losses", losses, self)
        self.loss_weights = self._check_weights(loss_weights)
        self.epochs = None if epochs is None else validation.positive_int("epochs", epochs, self)
        self.alpha = None if alpha is None else _number("alpha", alpha, 1, self)
        if not self.losses:
            if self.alpha not in (None, 0.0):
                raise ValueError(
                    f"Stage: without losses a stage trains on the labels alone, alpha=0; got "
                    f"losses={losses!r}, alpha={alpha!r}."
                )
            self.alpha = 0.0
        if layers is not None:
            layers = list(layers) if isinstance(layers, (list, tuple)) else [layers]
            if not layers or not all(isinstance(key, str) for key in layers):
                raise ValueError(
                    "Stage: `layers` must be names or globs of the student's layers, or None; got "
                    f"layers={layers!r}."
                )
        self.layers = layers

    def _check_weights(self, weights):
        if weights is None:
            return [1.0] * len(self.losses)
        single = len(self.losses) == 1 and (
            not isinstance(weights, (list, tuple))
            or isinstance(weights, tuple)
            and len(weights) == 2
        )
        weights = [weights] if single else weights
        if not isinstance(weights, (list, tuple)) or len(weights) != len(self.losses):
            raise ValueError(
                f"Stage: `loss_weights` must have one number, or pair (start, end), for each of "
                f"the {len(self.losses)} losses; got loss_weights={weights!r}."
            )
        return [_number(f"loss_weights[{i}]", w, None, self) for i, w in enumerate(weights)]

    def share(self, epoch, epochs):
        """How far the stage has come, from 0 in its first epoch to 1 in its last.

        Args:
            epoch: Epoch of the stage, from 0.
            epochs: How many there are, for a stage that does not say.
        """
        last = (self.epochs or epochs) - 1
        return min(epoch / last, 1.0) if last > 0 else 0.0

    def get_config(self):
        return {
            "losses": [keras.saving.serialize_keras_object(loss) for loss in self.losses] or None,
            "loss_weights": self.loss_weights,
            "epochs": self.epochs,
            "alpha": self.alpha,
            "layers": self.layers,
        }

    @classmethod
    def from_config(cls, config):
        losses = config["losses"]
        if losses is not None:
            losses = [keras.saving.deserialize_keras_object(loss) for loss in losses]
        return cls(**{**config, "losses": losses})


def _number(name, value, high, owner):
    """A number from 0 to `high`, or a pair of them."""
    if isinstance(value, (list, tuple)):
        if len(value) != 2:
            raise ValueError(
                f"{validation.prefix(owner)}`{name}` must be a number or a pair (start, end); got "
                f"{name}={value!r}."
            )
        return tuple(
            validation.number(f"{name}[{i}]", v, 0, high, owner=owner) for i, v in enumerate(value)
        )
    return validation.number(name, value, 0, high, owner=owner)
