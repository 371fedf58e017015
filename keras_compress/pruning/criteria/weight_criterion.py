"""`WeightCriterion`: how much each single weight matters."""

import dataclasses
import functools

import keras

from keras_compress import matching
from keras_compress.call_graph import CallGraph
from keras_compress.convert import check_graph
from keras_compress.pruning.criteria.criterion import Criterion
from keras_compress.pruning.prunable import all_layers, prunable_kernels


@dataclasses.dataclass(eq=False)
class WeightGraph:
    """A model, its kernels and, when asked for, its calls.

    Attributes:
        model: The model.
        kernels: List of `PrunableKernel`, all that a mask could go on.
    """

    model: keras.Model
    kernels: list

    @functools.cached_property
    def graph(self):
        """The `CallGraph`."""
        return CallGraph(self.model)


class WeightCriterion(Criterion):
    """Base of criteria that score single weights: an array of its shape for each kernel.

    Scores are named after layer and weight (`"conv/kernel"`), with the models and wrappers around
    it before them. By default those of all trainable layers are scored; embeddings and layers that
    are not trained only if `layers` chooses them. A subclass writes `score`, where the parts are
    `PrunableKernel`s and `graph` is a `WeightGraph`.

    Attributes:
        chooses: Whether the criterion itself says which weights stay: those that it scores above 0.
    """

    granularity = "weight"
    chooses = False

    def open(self, model):
        name = type(self).__name__
        if isinstance(model, WeightGraph):
            return model
        check_graph(model, name)
        return WeightGraph(model, prunable_kernels(model))

    def applies(self, kernel):
        """Whether the criterion is meant for a kernel; others are left out unless chosen."""
        return kernel.layer.trainable and kernel.attribute != "embeddings"

    def parts(self, graph, layers=None):
        if layers is None:
            chosen = [kernel for kernel in graph.kernels if self.applies(kernel)]
        else:
            one = isinstance(layers, str) or callable(layers)
            keys = [layers] if one else list(layers)
            matching.resolve(keys, all_layers(graph.model))
            chosen = [k for k in graph.kernels if any(k.matches(key) for key in keys)]
        if not chosen:
            names = ", ".join(kernel.name for kernel in graph.kernels)
            raise ValueError(
                f"{type(self).__name__}: model '{graph.model.name}' has no kernel that this is for "
                f"and that `layers` chooses. It has: {names or 'none'}."
            )
        return chosen
