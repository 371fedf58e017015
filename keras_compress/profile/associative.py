"""Additions of binary filters that share partial results (associative convolution)."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_compress.layers import QuantConv2D, QuantDense
from keras_compress.profile.macs import layer_calls
from keras_compress.quantizers import ResidualSign


@dataclasses.dataclass(frozen=True)
class AssociativeAdds:
    """Additions of one layer for one sample.

    Args:
        name: Name of the layer.
        filters: Number of binary filters: `order` for each output.
        naive: Additions with every filter computed on its own.
        associative: Additions with every filter computed from a neighbour.
    """

    name: str
    filters: int
    naive: int
    associative: int


def associative_adds(model):
    """Counts what sketched layers save if binary filters are computed from each other.

    The response of a filter B of t signs takes t - 1 additions. From a filter B' that differs in d
    signs it follows as `x*B = x*B' + 2 x*D`, where D holds the d signs of B in which they differ:
    d additions. The cheapest order is a minimum spanning tree under the Hamming distance, in which
    a filter may also be computed from nothing. It is an analysis: no kernel of LiteRT does this.

    Counted are the binary filters of dense and convolution layers with `kernel_quantizer=
    kc.quantizers.ResidualSign(...)`, without the scales and without the sum over the order.
    Borders count as full positions.

    Args:
        model: A built Sequential or functional model with such layers.

    Returns:
        List of `AssociativeAdds`, one entry a layer, in the order of the model; a layer that is
        called several times counts several times.

    Raises:
        ValueError: if the model has no graph or no such layer, or a shape is open.

    Reference:
        Guo, Yao, Zhao, Chen, "Network Sketching: Exploiting Binary Structure in Deep CNNs", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     kc.layers.QuantConv2D(32, 3, kernel_quantizer=kc.quantizers.ResidualSign(2)),
    ... ])
    >>> (row,) = associative_adds(model)
    >>> row.filters, row.naive, row.associative < 0.5 * row.naive
    (64, 18432, True)
    """
    rows = {}
    for call in layer_calls(model):
        layer = call.layer
        if not _is_sketched(layer):
            continue
        if None in call.output_shape[1:]:
            raise ValueError(
                f"associative_adds: layer '{layer.name}' has an open output shape "
                f"{call.output_shape}; build the model with a keras.Input of a fixed shape."
            )
        positions = math.prod(call.output_shape[1:]) // layer.kernel.shape[-1]
        signs = _binary_filters(layer)
        naive = sum(filters.size - len(filters) for filters in signs)
        associative = sum(int(spanning_tree(filters)[1].sum()) for filters in signs)
        count = sum(len(filters) for filters in signs)
        before = rows.get(id(layer), AssociativeAdds(layer.name, count, 0, 0))
        rows[id(layer)] = dataclasses.replace(
            before,
            naive=before.naive + positions * naive,
            associative=before.associative + positions * associative,
        )
    if not rows:
        raise ValueError(
            f"associative_adds: model '{model.name}' has no dense or convolution layer with a "
            "ResidualSign kernel; make one by kc.quantizers.apply(model, ResidualSign(3))."
        )
    return list(rows.values())


def spanning_tree(signs):
    """The cheapest order in which binary filters are computed from each other (Prim's algorithm).

    Args:
        signs: Array `(filters, t)` of -1 and 1.

    Returns:
        `(parents, adds)`: for each filter the one that it is computed from, or -1 for none, and the
        additions that this takes: the Hamming distance, or `t - 1` from nothing. Parents come
        before their children in the order of a walk from -1.
    """
    # float32 counts exactly up to 2^24 signs.
    signs = np.asarray(signs, "float32")
    count, size = signs.shape
    parents, adds = np.full(count, -1), np.full(count, size - 1.0)
    open_ends = adds.copy()
    for _ in range(count):
        nearest = int(open_ends.argmin())
        open_ends[nearest] = np.inf
        distances = (size - signs @ signs[nearest]) / 2
        closer = (distances < adds) & np.isfinite(open_ends)
        parents[closer] = nearest
        adds[closer] = open_ends[closer] = distances[closer]
    return parents, adds.astype("int64")


def _is_sketched(layer):
    is_kind = isinstance(layer, (QuantDense, QuantConv2D))
    return is_kind and isinstance(layer.kernel_quantizer, ResidualSign)


def _binary_filters(layer):
    """List of arrays `(filters, signs)`, one for each group of filters with the same inputs."""
    codes = layer.kernel_quantizer.encode(ops.convert_to_tensor(layer.kernel)).ints
    codes = codes.reshape(-1, codes.shape[-1])
    groups = np.split(codes.T, getattr(layer, "groups", 1))
    orders = range(layer.kernel_quantizer.order)
    return [np.concatenate([(codes >> j & 1) * 2.0 - 1 for j in orders]) for codes in groups]
