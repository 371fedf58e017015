"""What a `Distiller` does in each of its stages."""

import dataclasses
import itertools

import keras

from keras_compress import matching
from keras_compress.distillation.pairs import layers_above


@dataclasses.dataclass(eq=False)
class Phase:
    """A stage, ready to run.

    Args:
        stage: `Stage`.
        entries: List of `(place of the loss among all, its weight)`; a weight that changes is a
            variable.
        alpha: Weight of the distillation losses, a number or a variable.
        hard: Whether labels are used.
        soft: Whether the distillation losses are.
        ramps: List of `(variable, first value, last value)`.
    """

    stage: object
    entries: list
    alpha: object
    hard: bool
    soft: bool
    ramps: list

    def set_epoch(self, epoch, epochs):
        """Sets the weights that change for an epoch of the stage, see `Stage.share`."""
        for variable, start, end in self.ramps:
            variable.assign(start + self.stage.share(epoch, epochs) * (end - start))


def make_phases(stages, terms, alpha, add_weight):
    """Makes the phases of stages.

    Args:
        stages: List of `Stage`.
        terms: List of `Term`, one for each of the stages' losses.
        alpha: What a stage takes that does not say and looks at outputs.
        add_weight: Function that makes a variable, as in `keras.layers.Layer`.
    """
    places = {id(term.loss): place for place, term in enumerate(terms)}
    phases = []
    for number, stage in enumerate(stages):
        ramps = []

        def value(name, given, ramps=ramps, number=number):
            if not isinstance(given, tuple):
                return given
            start = keras.initializers.Constant(given[0])
            variable = add_weight(
                name=f"stage_{number}_{name}", shape=(), initializer=start, trainable=False
            )
            ramps.append((variable, *given))
            return variable

        own = [places[id(loss)] for loss in stage.losses]
        share = stage.alpha
        if share is None:
            share = 1.0 if all(terms[place].looks_inside for place in own) else alpha
        ends = share if isinstance(share, tuple) else (share,)
        weights = [value(f"weight_{i}", w) for i, w in enumerate(stage.loss_weights)]
        phases.append(
            Phase(
                stage,
                list(zip(own, weights, strict=True)),
                value("alpha", share),
                hard=min(ends) < 1,
                soft=max(ends) > 0,
                ramps=ramps,
            )
        )
    return phases


def frozen_layers(phase, terms, student, all_used):
    """Layers of the student that a phase does not train, without models.

    Args:
        phase: `Phase`.
        terms: List of `Term`.
        student: Model.
        all_used: Whether something besides the distillation losses uses the student's outputs.
    """
    own = [terms[place] for place, _ in phase.entries]
    frozen = []
    if not phase.hard and not all_used and all(term.looks_inside for term in own):
        names = {
            name for term in own for _, pair, _ in term.pairs for name in keras.tree.flatten(pair)
        }
        frozen += layers_above(student, names)
    if phase.stage.layers is not None:
        leaves = matching.leaf_layers(student)
        chosen = {id(layer) for layer, _ in matching.resolve(phase.stage.layers, leaves)}
        frozen += [leaf for leaf in leaves if id(leaf) not in chosen]
    return frozen


class TrainableFlags:
    """The `trainable` flags of layers and of their variables, to be set back later.

    Args:
        layers: List of layers.
    """

    def __init__(self, layers):
        parts = [part for layer in layers for part in layer._flatten_layers()]
        self._flags = [(part, part.trainable) for part in parts]
        variables = itertools.chain.from_iterable(layer.variables for layer in layers)
        self._flags += [(variable, variable.trainable) for variable in variables]

    def restore(self):
        """Sets them back."""
        # A layer's flag goes down to what it holds, which comes after it.
        for part, flag in self._flags:
            if part.trainable != flag:
                part.trainable = flag


class StageCallback(keras.callbacks.Callback):
    """Puts the `Distiller` into the stage of each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model._begin_epoch(epoch, self.params.get("epochs"))
