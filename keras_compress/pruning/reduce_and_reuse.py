"""`reduce_and_reuse`: drops a layer's dullest channels, and mends what read them."""

import keras
import numpy as np

from keras_compress.convert import check_graph, rebuild
from keras_compress.pruning.criteria import ActivationVariance
from keras_compress.pruning.criteria.observer import Observer
from keras_compress.pruning.masks import keep_largest
from keras_compress.pruning.parts import (
    free_producer,
    number_to_keep,
    places_of,
    readers_of,
    stand_in_fault,
)
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.pruning.surgery import ChannelGraph, cut
from keras_compress.samples import Samples


def reduce_and_reuse(model, layer, keep, data, *, batch_size=64):
    """Removes the channels of a layer that vary the least; the others stand in for them.

    *Reduce*: the channels with the least variance over the data go. *Reuse*: for every layer that
    reads them, the dropped inputs are written as a linear map of the kept ones, found by least
    squares over samples and positions. That map, a 1x1 convolution before the reader, is multiplied
    into the reader's kernel: the same outputs, and nothing is added to the model.

    Call it layer by layer, and fine-tune after each.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        layer: Name of the layer, with those of the models around it (`"encoder/conv"`).
        keep: Number of channels that stay, or their share, a float in (0, 1].
        data: An array, `(x, y)` or an iterable of batches; targets are not looked at.
        batch_size: Rows of `data` at a time.

    Returns:
        A smaller model of the same layers, compiled like `model` if that is compiled.

    Raises:
        ValueError: if the model has no graph or is under a pruning mask, it has no such layer, its
            channels must stay, a reader has no kernel that the map could go in, `keep` is more than
            there are, or data is missing or does not fit.

    Reference:
        Polyak, Wolf, "Channel-level Acceleration of Deep Face Representations", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(6, name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(100, 8))
    >>> kc.pruning.reduce_and_reuse(model, "hidden", 4, x).get_layer("hidden").units
    4
    """
    check_graph(model, "reduce_and_reuse")
    refuse_masked(model, "reduce_and_reuse")
    # A copy, whose kernels may change.
    graph = ChannelGraph(rebuild(model, {}))
    producer = free_producer(graph, layer, "reduce_and_reuse")
    samples = Samples(graph.model, data, batch_size, owner="reduce_and_reuse")
    scores = ActivationVariance()(graph, producer.layer, data, batch_size=batch_size)[producer.name]
    number = number_to_keep(keep, len(scores), "reduce_and_reuse")
    stays = keep_largest(scores, len(scores) - number)
    kept, dropped = (producer.channels[mask] for mask in (stays, ~stays))
    readers = readers_of(graph, dropped)
    _check_readers(readers, producer.channels)
    observer = Observer(graph.graph, [reader.value for reader in readers])
    reuses = [_Reuse(reader, kept, dropped) for reader in readers]
    for inputs, _ in samples:
        for reuse, tensor in zip(reuses, observer.activations(inputs), strict=True):
            reuse.update(tensor)
    for reuse in reuses:
        reuse.fold()
    left = np.ones(graph.count, bool)
    left[dropped] = False
    return cut(graph, left)


def _check_readers(readers, channels):
    for reader in readers:
        fault = stand_in_fault(reader, channels)
        if fault:
            raise ValueError(f"reduce_and_reuse: {fault}. Use prune_channels there.")


class _Reuse:
    """The linear map from kept to dropped inputs of a reader.

    Args:
        reader: The `Consumer`.
        kept: Numbers of the channels that stay.
        dropped: Numbers of those that go.
    """

    def __init__(self, reader, kept, dropped):
        self._reader = reader
        self._kept, self._dropped = places_of(reader, kept), places_of(reader, dropped)
        self._products = 0.0

    def update(self, tensor):
        """Takes in a batch of the reader's inputs."""
        rows = np.moveaxis(tensor.astype("float64"), self._reader.axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        places = np.concatenate([self._kept, self._dropped])
        rows = rows[:, places].swapaxes(1, 2).reshape(-1, len(places))
        self._products = self._products + rows.T @ rows

    def fold(self):
        """Multiplies the map into the reader's kernel."""
        number = len(self._kept)
        products = self._products[:number]
        # The shortest map, where kept channels depend on one another.
        weights = np.linalg.lstsq(products[:, :number], products[:, number:], rcond=1e-12)[0]
        variable, place = self._reader.variable, self._reader.place
        kernel = keras.ops.convert_to_numpy(variable)
        rows = np.moveaxis(kernel, place, 0).astype("float64")
        rows[self._kept] += np.tensordot(weights, rows[self._dropped], 1)
        variable.assign(np.moveaxis(rows, 0, place).astype(kernel.dtype))
