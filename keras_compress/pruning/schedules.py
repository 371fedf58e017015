"""Sparsity as a function of the training step.

A schedule is called with a step (training batches seen so far, an `int`) and gives the pair
`(should_prune, sparsity)`, the convention of tensorflow-model-optimization, whose schedule objects
are taken wherever these are. Argument names are the same, too.
"""

import json
import math
import numbers
import zlib

import keras

from keras_compress import validation


class PruningSchedule:
    """Base of schedules: masks are due every `frequency` steps from `begin_step` to `end_step`.

    A subclass writes `sparsity_at(step)` and `get_config()`. The last step is always due, so that
    the final sparsity is reached whatever the frequency.

    Args:
        begin_step: Step at which pruning begins.
        end_step: Last step at which masks change; -1: no end.
        frequency: Steps between two changes of the masks.
    """

    def __init__(self, begin_step, end_step, frequency):
        self.begin_step = _step("begin_step", begin_step, self)
        self.end_step = -1 if _is_endless(end_step) else _step("end_step", end_step, self)
        self.frequency = validation.positive_int("frequency", frequency, self)
        if -1 < self.end_step < self.begin_step:
            raise ValueError(
                f"{type(self).__name__}: `end_step` must not lie before `begin_step`; got "
                f"begin_step={begin_step}, end_step={end_step}."
            )

    def __call__(self, step):
        step = int(step)
        inside = step >= self.begin_step and not -1 < self.end_step < step
        on_turn = (step - self.begin_step) % self.frequency == 0 or step == self.end_step
        return inside and on_turn, self.sparsity_at(step)

    def sparsity_at(self, step):
        """Sparsity asked for at `step`."""
        raise NotImplementedError

    @property
    def final_sparsity(self):
        """The sparsity that the schedule ends with."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_compress")
class ConstantSparsity(PruningSchedule):
    """The same sparsity from `begin_step` on; masks are chosen anew every `frequency` steps.

    Args:
        target_sparsity: Share of weights to prune, in [0, 1).
        begin_step: Step at which pruning begins.
        end_step: Last step at which masks change; -1: no end.
        frequency: Steps between two choices.

    Example:

    >>> import keras_compress as kc
    >>> schedule = kc.pruning.ConstantSparsity(0.5, begin_step=10)
    >>> schedule(9), schedule(10), schedule(11)
    ((False, 0.5), (True, 0.5), (False, 0.5))
    """

    def __init__(self, target_sparsity, begin_step=0, end_step=-1, frequency=100):
        super().__init__(begin_step, end_step, frequency)
        self.target_sparsity = _sparsity("target_sparsity", target_sparsity, self)

    def sparsity_at(self, step):
        return self.target_sparsity

    @property
    def final_sparsity(self):
        return self.target_sparsity

    def get_config(self):
        return {
            "target_sparsity": self.target_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
        }


@keras.saving.register_keras_serializable(package="keras_compress")
class OneShot(PruningSchedule):
    """Prunes once, at `begin_step`; the masks stay as they are from then on.

    Args:
        target_sparsity: Share of weights to prune, in [0, 1).
        begin_step: Step at which the masks are chosen.

    Example:

    >>> import keras_compress as kc
    >>> schedule = kc.pruning.OneShot(0.9, begin_step=2)
    >>> [due for due, _ in map(schedule, range(5))]
    [False, False, True, False, False]
    """

    def __init__(self, target_sparsity, begin_step=0):
        super().__init__(begin_step, begin_step, 1)
        self.target_sparsity = _sparsity("target_sparsity", target_sparsity, self)

    def sparsity_at(self, step):
        return self.target_sparsity

    @property
    def final_sparsity(self):
        return self.target_sparsity

    def get_config(self):
        return {"target_sparsity": self.target_sparsity, "begin_step": self.begin_step}


class _Ramp(PruningSchedule):
    """From `initial_sparsity` to `final_sparsity` between two steps."""

    def __init__(self, initial_sparsity, final_sparsity, begin_step, end_step, frequency):
        super().__init__(begin_step, end_step, frequency)
        if self.end_step <= self.begin_step:
            raise ValueError(
                f"{type(self).__name__}: a ramp needs an `end_step` after `begin_step`; got "
                f"begin_step={begin_step}, end_step={end_step}. Use ConstantSparsity or OneShot "
                "for a sparsity without a ramp."
            )
        self.initial_sparsity = _sparsity("initial_sparsity", initial_sparsity, self)
        self._final_sparsity = _sparsity("final_sparsity", final_sparsity, self)
        if self.initial_sparsity > self._final_sparsity:
            raise ValueError(
                f"{type(self).__name__}: sparsity can only grow; got "
                f"initial_sparsity={initial_sparsity} > final_sparsity={final_sparsity}."
            )

    def sparsity_at(self, step):
        progress = (step - self.begin_step) / (self.end_step - self.begin_step)
        left = self._left(min(1.0, max(0.0, progress)))
        return self._final_sparsity + (self.initial_sparsity - self._final_sparsity) * left

    def _left(self, progress):
        """Share of the way that is still to go, from 1 at the start to 0 at the end."""
        raise NotImplementedError

    @property
    def final_sparsity(self):
        return self._final_sparsity

    def get_config(self):
        return {
            "initial_sparsity": self.initial_sparsity,
            "final_sparsity": self._final_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
        }


@keras.saving.register_keras_serializable(package="keras_compress")
class PolynomialDecay(_Ramp):
    """Zhu and Gupta's ramp: quick at first, while many weights are redundant, then ever slower.

    `sparsity = final + (initial - final) * (1 - (step - begin) / (end - begin)) ** power`.

    Args:
        initial_sparsity: Sparsity at `begin_step`, in [0, 1).
        final_sparsity: Sparsity at `end_step`, in [0, 1).
        begin_step: Step at which pruning begins.
        end_step: Step at which the final sparsity is reached.
        power: Exponent; 3 in the paper, 1 is a straight line.
        frequency: Steps between two changes of the masks.

    Reference:
        M. Zhu, S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
        compression", 2017.

    Example:

    >>> import keras_compress as kc
    >>> schedule = kc.pruning.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)
    >>> [round(schedule(step)[1], 2) for step in (0, 250, 500, 1000)]
    [0.0, 0.46, 0.7, 0.8]
    """

    def __init__(
        self, initial_sparsity, final_sparsity, begin_step, end_step, power=3, frequency=100
    ):
        super().__init__(initial_sparsity, final_sparsity, begin_step, end_step, frequency)
        self.power = validation.number("power", power, 0, low_open=True, owner=self)

    def _left(self, progress):
        return (1 - progress) ** self.power

    def get_config(self):
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="keras_compress")
class CosineDecay(_Ramp):
    """Half a cosine wave from the initial to the final sparsity: slow, quick, slow.

    Args:
        initial_sparsity: Sparsity at `begin_step`, in [0, 1).
        final_sparsity: Sparsity at `end_step`, in [0, 1).
        begin_step: Step at which pruning begins.
        end_step: Step at which the final sparsity is reached.
        frequency: Steps between two changes of the masks.

    Example:

    >>> import keras_compress as kc
    >>> schedule = kc.pruning.CosineDecay(0.0, 0.8, begin_step=0, end_step=1000)
    >>> [round(schedule(step)[1], 2) for step in (0, 250, 500, 1000)]
    [0.0, 0.12, 0.4, 0.8]
    """

    def __init__(self, initial_sparsity, final_sparsity, begin_step, end_step, frequency=100):
        super().__init__(initial_sparsity, final_sparsity, begin_step, end_step, frequency)

    def _left(self, progress):
        return (1 + math.cos(math.pi * progress)) / 2


class ForeignSchedule:
    """A callable `step -> (should_prune, sparsity)` from elsewhere, tfmot's objects for one.

    Where it says from when to when and how often it prunes (as tfmot's do), it is not asked at
    other steps: their calls run TensorFlow operations.

    Args:
        function: The callable.
    """

    def __init__(self, function):
        self.function = function
        self.begin_step = getattr(function, "begin_step", 0)
        self.end_step = getattr(function, "end_step", -1)
        self.frequency = getattr(function, "frequency", 1)
        final = getattr(function, "final_sparsity", None)
        self.final_sparsity = getattr(function, "target_sparsity", None) if final is None else final
        self._answer(self.begin_step)

    def __call__(self, step):
        step = int(step)
        if step < self.begin_step or -1 < self.end_step < step:
            return False, 0.0
        if (step - self.begin_step) % self.frequency:
            return False, 0.0
        return self._answer(step)

    def _answer(self, step):
        try:
            due, sparsity = self.function(step)
            return bool(due), float(sparsity)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "A pruning schedule is called with a step and gives (should_prune, sparsity); "
                f"{self.function!r} did not: {error}"
            ) from error

    def get_config(self):
        inner = getattr(self.function, "get_config", None)
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {"function": name, "config": inner() if inner else None}


def get(schedule):
    """Returns a schedule object for a schedule, its serialised form, or a foreign callable.

    Args:
        schedule: A `PruningSchedule`, the dict of `keras.saving.serialize_keras_object`, or any
            callable `step -> (should_prune, sparsity)`, such as a tfmot schedule, which keeps its
            own rule of when to prune. What `get_config()` of a tfmot schedule gives becomes the
            schedule of that name here, which prunes at `end_step` too if that is off the turn.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(schedule, dict):
        schedule = _deserialize(schedule)
    if isinstance(schedule, (PruningSchedule, ForeignSchedule)):
        return schedule
    if callable(schedule) and not isinstance(schedule, type):
        return ForeignSchedule(schedule)
    raise ValueError(
        "A pruning schedule must be an object of kc.pruning (ConstantSparsity, PolynomialDecay, "
        "CosineDecay, OneShot), a tfmot schedule, or a callable step -> (should_prune, sparsity); "
        f"got {schedule!r}."
    )


def _deserialize(config):
    own = {cls.__name__: cls for cls in (ConstantSparsity, PolynomialDecay)}
    # tfmot's configurations have the class name alone, Keras's the module, too.
    if set(config) == {"class_name", "config"} and config["class_name"] in own:
        return own[config["class_name"]](**config["config"])
    return keras.saving.deserialize_keras_object(config)


def fingerprint(schedule):
    """An `int32` that tells two schedules apart, the same in every process."""
    config = [type(schedule).__name__, schedule.get_config()]
    return zlib.crc32(json.dumps(config, sort_keys=True, default=str).encode()) & 0x7FFFFFFF


def _is_endless(step):
    return isinstance(step, numbers.Integral) and step == -1


def _step(name, value, owner):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(
            f"{validation.prefix(owner)}`{name}` counts training batches and must be an integer "
            f">= 0; got {name}={value!r}."
        )
    return int(value)


def _sparsity(name, value, owner):
    return validation.number(name, value, 0, 1, high_open=True, owner=owner)
