"""KnowledgeProjection: hints between the pair of layers that serves best, and fade out."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.distillation.distiller import Distiller
from keras_compress.distillation.hint import Hint
from keras_compress.distillation.stage import Stage

DECAYS = ("linear", "cosine")


@keras.saving.register_keras_serializable(package="keras_compress")
class KnowledgeProjection(Distiller):
    """Trains a student on labels and on projected features of its teacher, whose weight fades.

    Each candidate is a pair of layers, between which a hint would be (`kc.distillation.Hint`, with
    its projection). `fit` first trains each of them for `select_epochs`, all from the same weights,
    and records the loss of the last of these epochs; weights and optimizer are then set back, and
    the pair of lowest loss is trained for all of `epochs`. The loss of a batch is

        alpha_t * weight * hint + (1 - alpha_t) * hard + regularizers

    where `alpha_t` goes from `alpha` in the first epoch to 0 in the last, by `decay`: the student
    ends on the labels alone. With one candidate nothing is selected.

    The losses of candidates count as they are, and a hint grows with its layer's size: give each
    candidate its `weight` where teacher layers differ in size, such as one over the number of
    features. Projections belong to the `Distiller`, not to the student.

    Selection is done once, by the first `fit`; `chosen` and `candidate_losses` are kept in files.

    Args:
        teacher: A trained Sequential or functional model.
        student: The model to train, built.
        candidates: List of `(teacher layer name, student layer name)`.
        alpha: Weight of the hint against the labels in the first epoch, above 0, to 1.
        weight: Factor of the hint, or a list with one for each candidate.
        adapter: The projection, see `kc.distillation.FeatureLoss`.
        select_epochs: Epochs for which each candidate is tried.
        decay: `"linear"`, `"cosine"`, or a function from the share of epochs that has passed, 0 to
            1, to the factor of `alpha`, 0 to 1.
        decay_epochs: Epoch by which it has come to its end; by default the last of `fit`.
        name: Name of the model.
        **kwargs: `dtype`, as in `kc.distillation.Distiller`.

    Raises:
        ValueError: for candidates that are no pairs, layers that no projection joins, numbers out
            of range, and in `fit` for data that can be gone through once only.

    Reference:
        Z. Zhang, G. Ning, Z. He, "Knowledge Projection for Effective Design of Thinner and Faster
        Deep Neural Networks", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> def net(units):
    ...     return keras.Sequential([
    ...         keras.Input((16,)),
    ...         keras.layers.Dense(units, activation="relu", name="low"),
    ...         keras.layers.Dense(units, activation="relu", name="high"),
    ...         keras.layers.Dense(3),
    ...     ])
    >>> distiller = kc.distillation.KnowledgeProjection(
    ...     net(64), net(8), candidates=[("low", "low"), ("high", "high")], alpha=0.3
    ... )
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = distiller.fit(np.ones((32, 16)), np.zeros((32,)), epochs=3, verbose=0)
    >>> distiller.chosen in [("low", "low"), ("high", "high")]
    True
    """

    def __init__(
        self,
        teacher,
        student,
        candidates,
        *,
        alpha=0.5,
        weight=1.0,
        adapter="auto",
        select_epochs=1,
        decay="linear",
        decay_epochs=None,
        name="knowledge_projection",
        **kwargs,
    ):
        owner = "KnowledgeProjection"
        candidates = _check_candidates(candidates)
        weights = _check_weights(weight, len(candidates))
        alpha = validation.number("alpha", alpha, 0, 1, low_open=True, owner=owner)
        select_epochs = validation.positive_int("select_epochs", select_epochs, owner)
        decay = _check_decay(decay)
        if decay_epochs is not None:
            decay_epochs = validation.positive_int("decay_epochs", decay_epochs, owner)
        stages = [
            _Fading(Hint(*pair, adapter=adapter), factor, alpha, decay, decay_epochs)
            for pair, factor in zip(candidates, weights, strict=True)
        ]
        super().__init__(teacher, student, stages=stages, alpha=alpha, name=name, **kwargs)
        self.candidates = candidates
        self.weight = weights
        self.select_epochs = select_epochs
        self.decay = decay
        self.decay_epochs = decay_epochs
        # A weight, so that files and backups keep what was selected; NaN: not tried yet.
        self._trial_losses = self.add_weight(
            name="candidate_losses",
            shape=(len(candidates),),
            dtype="float32",
            initializer=keras.initializers.Constant(float("nan")),
            trainable=False,
        )
        self._trial = None

    @property
    def candidate_losses(self):
        """Losses of the candidates when they were tried, a list; `None` before that."""
        losses = ops.convert_to_numpy(self._trial_losses)
        return None if np.isnan(losses).any() else losses.tolist()

    @property
    def chosen(self):
        """The pair of layers that is trained, or `None` before `fit` has selected it."""
        index = self._chosen_index()
        return None if index is None else self.candidates[index]

    def _chosen_index(self):
        if len(self.candidates) == 1:
            return 0
        losses = self.candidate_losses
        return None if losses is None else int(np.argmin(losses))

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """Selects a pair of layers, if that has not been done, and trains the student.

        Args:
            x: Inputs.
            y: Labels.
            batch_size: As in Keras.
            epochs: Epochs of training after the selection.
            verbose: As in Keras.
            callbacks: As in Keras. They see the training, not the selection.
            **kwargs: The other arguments of `keras.Model.fit`.

        Returns:
            `keras.callbacks.History`.
        """
        if self._chosen_index() is None:
            self._select(x, y, batch_size, kwargs)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def _select(self, x, y, batch_size, options):
        self._assert_compile_called("fit")
        if hasattr(x, "__next__"):
            raise ValueError(
                "KnowledgeProjection: candidates are tried one after the other, so `x` must be "
                "data that can be gone through again: arrays, a tf.data.Dataset or a "
                f"keras.utils.PyDataset; got a {type(x).__name__}."
            )
        left_out = ("validation_data", "validation_split", "validation_freq", "initial_epoch")
        options = {name: value for name, value in options.items() if name not in left_out}
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        models = [self.student, *self.adapters]
        changed = [v for model in models for v in model.variables] + self.optimizer.variables
        before = [ops.convert_to_numpy(v) for v in changed]
        losses = []
        for index in range(len(self.candidates)):
            self._trial = index
            try:
                history = super().fit(x, y, batch_size, self.select_epochs, 0, None, **options)
            finally:
                self._trial = None
                for variable, value in zip(changed, before, strict=True):
                    variable.assign(value)
            loss = history.history["loss"][-1]
            losses.append(loss if math.isfinite(loss) else math.inf)
        if min(losses) == math.inf:
            raise ValueError(
                f"KnowledgeProjection: the loss of each of the candidates {self.candidates} was "
                "not finite; lower the learning rate or `weight`."
            )
        self._trial_losses.assign(losses)

    def _begin_epoch(self, epoch, epochs):
        trying = self._trial is not None
        self._enter(self._trial if trying else self._chosen_index())
        # A candidate is tried at full weight.
        self._phase.set_epoch(*((0, 1) if trying else (epoch, epochs)))
        self.make_train_function()

    def get_config(self):
        config = super().get_config()
        kept = ("name", "trainable", "dtype", "teacher", "student", "alpha")
        decay = self.decay
        return {
            **{name: config[name] for name in kept},
            "candidates": [list(pair) for pair in self.candidates],
            "weight": self.weight,
            "adapter": self.distillation_losses[0].get_config()["adapter"],
            "select_epochs": self.select_epochs,
            "decay": keras.saving.serialize_keras_object(decay) if callable(decay) else decay,
            "decay_epochs": self.decay_epochs,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("teacher", "student", "adapter", "decay"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


class _Fading(Stage):
    """A stage whose `alpha` goes to 0 by a decay."""

    def __init__(self, hint, weight, alpha, decay, decay_epochs):
        # Which stage runs is not told from the epoch, so that one stands for any number of them.
        super().__init__(hint, [weight], epochs=1, alpha=(alpha, 0.0))
        self.decay, self.decay_epochs = decay, decay_epochs

    def share(self, epoch, epochs):
        last = (self.decay_epochs or epochs) - 1
        passed = min(epoch / last, 1.0) if last > 0 else 0.0
        return 1.0 - _factor(self.decay, passed)


def _factor(decay, passed):
    if decay == "linear":
        return 1.0 - passed
    if decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * passed))
    return float(decay(passed))


def _check_candidates(candidates):
    pairs = list(candidates) if isinstance(candidates, (list, tuple)) else []
    wrong = [
        pair
        for pair in pairs
        if not isinstance(pair, (list, tuple))
        or len(pair) != 2
        or not all(isinstance(name, str) for name in pair)
    ]
    if not pairs or wrong:
        raise ValueError(
            "KnowledgeProjection: `candidates` must be a list of at least one pair (teacher layer "
            f"name, student layer name); got candidates={wrong or candidates!r}."
        )
    return [tuple(pair) for pair in pairs]


def _check_weights(weight, count):
    weights = list(weight) if isinstance(weight, (list, tuple)) else [weight] * count
    if len(weights) != count:
        raise ValueError(
            f"KnowledgeProjection: `weight` must be a number or one for each of the {count} "
            f"candidates; got weight={weight!r}."
        )
    return [
        validation.number("weight", value, 0, low_open=True, owner="KnowledgeProjection")
        for value in weights
    ]


def _check_decay(decay):
    if not callable(decay):
        return validation.one_of("decay", decay, DECAYS, owner="KnowledgeProjection")
    factors = [decay(passed) for passed in (0.0, 0.5, 1.0)]
    for factor in factors:
        validation.number("decay(share)", factor, 0, 1, owner="KnowledgeProjection")
    return decay
