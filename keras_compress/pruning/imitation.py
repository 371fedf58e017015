"""Layer by layer imitation: a new layer learns to give what several old ones gave."""

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.call_graph import values_of
from keras_compress.convert import new_like
from keras_compress.pruning.criteria.observer import Observer
from keras_compress.samples import Samples

#: Layers that may stand between a convolution and what is merged with it.
ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
)


class Imitation:
    """Trains new layers, one at a time, on the mean squared difference to an old model's tensors.

    Args:
        model: The old model.
        data: An array, `(x, y)` or an iterable of batches; targets are not looked at.
        epochs: Passes over the data for each new layer; 0 for no training.
        learning_rate: Of Adam.
        batch_size: Rows of a batch, where `data` is arrays.
        seed: Of the order of the samples.
        verbose: 0 for no progress bar, 1 for one for each layer.
        owner: Name that error messages begin with.
    """

    def __init__(self, model, data, epochs, learning_rate, batch_size, seed, verbose, owner):
        self._epochs = validation.integer("epochs", epochs, 0, 10**9, owner)
        self._rate = validation.number(
            "learning_rate", learning_rate, 0, low_open=True, owner=owner
        )
        shuffle = np.random.default_rng(seed)
        self._samples = Samples(model, data, batch_size, owner=owner, shuffle=shuffle)
        self._verbose = verbose

    def train(self, layer, arrays, activations, graphs, source, targets):
        """Values of the new layer's variables after training.

        Args:
            layer: The new layer.
            arrays: Values of its variables to begin with.
            activations: Old layers whose copies follow it.
            graphs: `CallGraph`s of the model with the new layers so far, and of the old one.
            source: `Value` of the first graph: the new layer's input.
            targets: `Value`s of the second graph that, concatenated along the channels, are to be
                given.
        """
        if not self._epochs:
            return arrays
        channels = 1 if layer.data_format == "channels_first" else -1
        copy = new_like(layer, layer.get_config())
        block = keras.Sequential(
            [
                keras.Input(batch_shape=(None, *source.shape[1:])),
                copy,
                *(new_like(after, after.get_config()) for after in activations),
            ]
        )
        for variable, array in zip(copy.variables, arrays, strict=True):
            variable.assign(array)
        block.compile(keras.optimizers.Adam(self._rate), "mse")
        new, old = Observer(graphs[0], [source]), Observer(graphs[1], targets)
        if self._verbose:
            print(layer.name)
        bar = keras.utils.Progbar(self._epochs, verbose=self._verbose, unit_name="epoch")
        for epoch in range(self._epochs):
            losses = []
            for inputs, _ in self._samples:
                (given,), wanted = new.activations(inputs), old.activations(inputs)
                losses.append(block.train_on_batch(given, np.concatenate(wanted, channels)))
            bar.update(epoch + 1, [("loss", float(np.mean(losses)))])
        return values_of(copy)


def convolution_before(value, uses, kinds):
    """The convolution that gives a tensor, and the activation layers in between.

    Args:
        value: `Value` of a `CallGraph`, read once.
        uses: `collections.Counter` of the calls of each layer, by id.
        kinds: Classes of convolutions.

    Returns:
        `(call, list of calls)`, or `None` if there is none, or something else reads or calls one of
        these.
    """
    between = []
    while value.call is not None and len(value.readers) == 1:
        call = value.call
        if uses[id(call.operation)] > 1:
            return None
        if type(call.operation) in kinds:
            return call, between[::-1]
        if type(call.operation) not in ACTIVATIONS:
            return None
        between.append(call)
        (value,) = call.inputs
    return None


def find(graph, path):
    """The call of a graph that has a path."""
    return next(call for call in graph.calls if call.path == path)


def names_of(model, layers, kinds):
    """Names of the layers of some classes that `layers` chooses; `None` if that is `None`."""
    if layers is None:
        return None
    keys = [layers] if isinstance(layers, str) or callable(layers) else layers
    candidates = [layer for layer in matching.leaf_layers(model) if type(layer) in kinds]
    return {layer.name for layer, _ in matching.resolve(keys, candidates)}
