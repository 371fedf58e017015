"""`DataFree`: neurons by how well another one could stand in for them."""

import dataclasses

import keras
import numpy as np
from scipy.spatial.distance import cdist

from keras_compress.pruning.criteria.criterion import Criterion
from keras_compress.pruning.criteria.reader_criterion import scores_of_order
from keras_compress.pruning.parts import places_of, readers_of, stand_in_fault
from keras_compress.pruning.surgery import FIXED


class DataFree(Criterion):
    """Scores neurons by the saliency at which they are merged into another one of their layer.

    Removing neuron j, while its outgoing weights are added to those of neuron i, changes the next
    layer's outputs by about `s_ij = mean(a_j^2) |W_i - W_j|^2`, where `W` are the incoming weights,
    bias included, and `a` the outgoing ones. The pair of the least saliency is merged, `a_i` and
    what follows from it updated, and so on. No data is looked at.

    Neurons are the units of a Dense layer or the filters of a convolution between which and the
    layers that read them nothing has weights of its own (fold a batch normalization first). Others
    are left out. Cut after the merging with `kc.pruning.data_free_prune`.

    Args:
        normalize: See `Criterion`.

    Reference:
        Srinivas, Babu, "Data-free Parameter Pruning for Deep Neural Networks", 2015.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu", name="fc")])
    >>> model.add(keras.layers.Dense(2))
    >>> kc.pruning.criteria.DataFree()(model)["fc"].shape
    (3,)
    """

    def parts(self, graph, layers=None):
        parts = super().parts(graph, layers)
        faults = {part.name: merge_fault(graph, part) for part in parts}
        chosen = [part for part in parts if faults[part.name] is None]
        if not chosen:
            reasons = "; ".join(fault for fault in faults.values() if fault)
            raise ValueError(
                f"{type(self).__name__}: no chosen layer has neurons that can be merged: {reasons}."
            )
        return chosen

    def score(self, graph, parts, samples, loss):
        scores = []
        for part in parts:
            found = merging(graph, part)
            # One neuron stays: it has nobody to go to.
            last = np.setdiff1d(np.arange(len(part.channels)), found.removed)
            order = np.concatenate([found.removed, last])
            costs = np.append(found.costs, found.costs[-1:] if len(found.costs) else 0.0)
            scores.append(scores_of_order(order, costs))
        return scores


@dataclasses.dataclass(frozen=True)
class Merging:
    """Merges of the neurons of a layer, in order.

    Attributes:
        removed: Array of the neurons that go.
        into: Array of those that take their outgoing weights.
        costs: Saliency of each merge.
        saliencies: Array `(neurons, neurons)` of `s_ij` at the beginning; infinite for i = j.
    """

    removed: np.ndarray
    into: np.ndarray
    costs: np.ndarray
    saliencies: np.ndarray


def merging(graph, producer):
    """The `Merging` of a layer down to one neuron.

    Args:
        graph: The `ChannelGraph`.
        producer: A `Producer` without a `merge_fault`.
    """
    incoming = [_rows(producer.variable, producer.place)]
    if getattr(producer.layer, "bias", None) is not None:
        incoming.append(_rows(producer.layer.bias, 0))
    outgoing = [
        _rows(reader.variable, reader.place)[places_of(reader, producer.channels)]
        for reader in readers_of(graph, producer.channels)
    ]
    outgoing = [rows.reshape(len(rows), -1) for rows in outgoing]
    return merge_order(np.concatenate(incoming, 1), np.concatenate(outgoing, 1))


def merge_order(incoming, outgoing):
    """Merges neurons pair by pair, the least saliency first, until one is left.

    Args:
        incoming: float64 array `(neurons, weights)`.
        outgoing: float64 array `(neurons, weights)`.

    Returns:
        A `Merging`.
    """
    count = len(incoming)
    distances = cdist(incoming, incoming, "sqeuclidean")
    np.fill_diagonal(distances, np.inf)
    outgoing = outgoing.copy()
    squares = np.square(outgoing).mean(1)
    with np.errstate(invalid="ignore"):
        saliencies = squares * distances
    np.fill_diagonal(saliencies, np.inf)
    nearest = distances.argmin(0)
    removed, into, costs = np.empty(count - 1, int), np.empty(count - 1, int), np.empty(count - 1)
    left = np.ones(count, bool)
    for step in range(count - 1):
        alive = np.flatnonzero(left)
        cost = squares[alive] * distances[nearest[alive], alive]
        place = cost.argmin()
        goes = alive[place]
        stays = nearest[goes]
        removed[step], into[step], costs[step] = goes, stays, cost[place]
        outgoing[stays] += outgoing[goes]
        squares[stays] = np.square(outgoing[stays]).mean()
        left[goes] = False
        distances[goes] = np.inf
        stale = left & (nearest == goes)
        nearest[stale] = distances[:, stale].argmin(0)
    return Merging(removed, into, costs, saliencies)


def merge_fault(graph, producer):
    """Why neurons of a layer cannot be merged; `None` if they can.

    Args:
        graph: The `ChannelGraph`.
        producer: The `Producer`.
    """
    channels, name = producer.channels, producer.name
    if producer.axis is None or (channels == FIXED).any() or len(set(channels)) < len(channels):
        return f"channels of '{name}' must stay or are tied to one another"
    readers = readers_of(graph, channels)
    if not readers:
        return f"no layer with a kernel reads '{name}'"
    for reader in readers:
        fault = stand_in_fault(reader, channels)
        if fault:
            return fault
    own = {id(producer.variable), id(getattr(producer.layer, "bias", None))}
    own |= {id(reader.variable) for reader in readers}
    for variable in graph.model.variables:
        counted = graph.positions(variable).values()
        if id(variable) not in own and any(np.isin(channels, one).any() for one in counted):
            return f"'{variable.path}' has weights for each channel of '{name}'"
    if any(group.normalized and np.isin(channels, group.channels).any() for group in graph.groups):
        return f"a normalization takes statistics over the channels of '{name}'"
    return None


def _rows(variable, place):
    array = np.moveaxis(keras.ops.convert_to_numpy(variable), place, 0).astype("float64")
    return array.reshape(len(array), -1)
