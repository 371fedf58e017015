"""`SurgeryMask`: the constraint that masks weights and remembers what they would be without it."""

import contextvars
import dataclasses

import keras
import numpy as np
from keras import ops

from keras_compress.pruning.prunable import prunable_kernels
from keras_compress.pruning.pruning_mask import PruningMask, carry_masks

# Whether the JAX step that is being traced updates masks itself, after the optimizer.
_deferred = contextvars.ContextVar("deferred", default=False)


@dataclasses.dataclass(frozen=True)
class MaskUpdates:
    """At which steps a `SurgeryMask` is chosen anew: with probability `(1 + gamma step)^-power`.

    Args:
        gamma: See `kc.callbacks.DynamicNetworkSurgery`.
        power: Likewise.
        stop_step: Likewise.
        seed: Seed of the draws.
    """

    gamma: float
    power: float
    stop_step: int | None
    seed: int

    def due(self, step):
        """Whether the mask is chosen anew at a step, a (traced) int32 scalar."""
        probability = (1.0 + self.gamma * ops.cast(step, "float32")) ** -self.power
        due = ops.less(_uniform(step, self.seed), probability)
        return due if self.stop_step is None else ops.logical_and(due, step < self.stop_step)


@keras.saving.register_keras_serializable(package="keras_compress")
class SurgeryMask(PruningMask):
    """A `PruningMask` whose pruned weights go on being trained, out of sight.

    The layer computes with `W * T`: that is what its variable holds. The optimizer moves the
    variable by the gradient to `W * T`, pruned entries included; this constraint adds each pruned
    entry's movement to the `W` that it keeps, and puts `W * T` back. So every `W` is updated as if
    the layer masked it in its forward pass, whatever the layer and the optimizer.

    While `updates` is set, the mask itself is chosen anew in the compiled step: an entry below the
    lower threshold is pruned, one at or above the upper one is kept, others stay as they are.

    Args:
        shape: Shape of the weight.
        constraint: The constraint that the weight had before; it is applied first.
        **kwargs: `name`, as in Keras.
    """

    def __init__(self, shape, constraint=None, **kwargs):
        super().__init__(shape, constraint, **kwargs)
        # W where the mask prunes; elsewhere the variable has it.
        self.latent = self._state("latent", self.shape, "float32")
        # Lower and upper threshold, and the rate that they follow from; zeros before the start.
        self.thresholds = self._state("thresholds", (3,), "float32")
        self.steps = self._state("steps", (), "int32")
        self.updates = None

    def _state(self, name, shape, dtype):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            autocast=False,
        )

    def __call__(self, weight):
        if keras.backend.backend() != "jax":
            if self.constraint is not None:
                weight = self.constraint(weight)
            weight, state = self.step(weight, [variable.value for variable in self.state])
            for variable, value in zip(self.state, state, strict=True):
                variable.assign(value)
            return weight
        if not _deferred.get():
            # A step that cannot carry the state: pruned weights rest.
            return super().__call__(weight)
        return weight if self.constraint is None else self.constraint(weight)

    @property
    def state(self):
        """The variables that a step changes."""
        return [self.mask, self.latent, self.steps]

    def step(self, weight, state):
        """What a training step makes of the weight and the state.

        Args:
            weight: The weight as the optimizer left it.
            state: Values of `state`.

        Returns:
            `(weight, state)`: the masked weight, and the new values.
        """
        mask, latent, steps = state
        # A product: TensorFlow's select takes three times as long.
        hidden = ops.multiply(latent, 1.0 - mask)
        latent = ops.add(ops.cast(weight, "float32"), hidden)
        if self.updates is not None:
            low, high = self.thresholds[0], self.thresholds[1]
            size = ops.abs(latent)
            chosen = ops.logical_or(size >= high, ops.logical_and(mask > 0, size >= low))
            mask = ops.where(self.updates.due(steps), ops.cast(chosen, "float32"), mask)
        masked = ops.multiply(latent, mask)
        return ops.cast(masked, weight.dtype), [mask, latent, steps + 1]

    def start(self, low, high, c_rate):
        """Sets new thresholds, and the clock of `updates` to zero."""
        self.thresholds.assign([low, high, c_rate])
        self.steps.assign(0)

    def started(self, c_rate):
        """Whether the thresholds follow from `c_rate`."""
        _, high, known = ops.convert_to_numpy(self.thresholds)
        return bool(high) and known == np.float32(c_rate)


def carry_surgery(model):
    """Makes a model's JAX step update its `SurgeryMask`s; other backends need nothing.

    There, a constraint cannot change state of its own: Keras drops what it assigns.
    """
    carry_masks(model)
    step = model.train_step
    if keras.backend.backend() != "jax" or getattr(step, "carries_surgery", False):
        return

    def train_step(state, data):
        token = _deferred.set(True)
        try:
            logs, state = step(state, data)
        finally:
            _deferred.reset(token)
        trainable, others, *rest = state
        return logs, (*_after_step(model, trainable, others), *rest)

    train_step.carries_masks = train_step.carries_surgery = True
    model.train_step = train_step
    model.train_function = None


def _after_step(model, trainable, others):
    """The values of a model's trainable and other variables, with `SurgeryMask`s applied."""
    trainable, others = list(trainable), list(others)
    places = {id(v): i for i, v in enumerate(model.trainable_variables)}
    other_places = {id(v): i for i, v in enumerate(model.non_trainable_variables)}
    for kernel in prunable_kernels(model):
        mask = getattr(kernel.layer, kernel.constraint_attribute)
        place = places.get(id(kernel.variable))
        if place is None or not isinstance(mask, SurgeryMask):
            continue
        at = [other_places[id(variable)] for variable in mask.state]
        # Thresholds do not change within a fit, but a restored backup must not need a compilation.
        with keras.StatelessScope([(mask.thresholds, others[other_places[id(mask.thresholds)]])]):
            trainable[place], state = mask.step(trainable[place], [others[i] for i in at])
        for i, value in zip(at, state, strict=True):
            others[i] = value
    return trainable, others


def _uniform(step, seed):
    """A number in [0, 1) that step and seed determine, on every backend and in every compilation.

    The finalizer of MurmurHash3 on a Weyl sequence.
    """

    def constant(value):
        return ops.convert_to_tensor(np.uint32(value & 0xFFFFFFFF), "uint32")

    def shifted(word, bits):
        return ops.bitwise_xor(word, ops.right_shift(word, constant(bits)))

    word = ops.cast(step, "uint32") * constant(0x9E3779B9) + constant(seed * 0x632BE5AB + 1)
    word = shifted(word, 16) * constant(0x85EBCA6B)
    word = shifted(word, 13) * constant(0xC2B2AE35)
    # 24 bits are what a float32 holds.
    return ops.cast(ops.right_shift(shifted(word, 16), constant(8)), "float32") / 2**24
