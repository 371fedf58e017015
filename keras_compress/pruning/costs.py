"""What a model costs when some of its channels are gone, without building it."""

import math

import keras
import numpy as np


def cost_of(what, graph, latency_table=None):
    """A function from which channels stay to a cost.

    Args:
        what: `"macs"`, `"params"`, `"bytes"`, `"energy"` or `"latency"`.
        graph: `ChannelGraph` of the model.
        latency_table: For `"latency"`: a `kc.profile.LatencyTable`; `None` to measure one.

    Returns:
        Function `kept -> float`, where `kept` is a boolean array over the channel numbers.
    """
    if what == "latency":
        return latency_cost(graph, latency_table)
    costs = {"macs": macs_cost, "params": params_cost, "bytes": bytes_cost, "energy": energy_cost}
    return costs[what](graph)


def params_cost(graph):
    """Number of all weights."""
    sizes = [_Size(graph, v) for v in _variables(graph)]
    return lambda kept: float(sum(size(kept) for size in sizes))


def bytes_cost(graph):
    """Bytes of all weights as float32."""
    params = params_cost(graph)
    return lambda kept: 4.0 * params(kept)


def macs_cost(graph):
    """Multiply-accumulates, equal to `kc.profile.macs` of the pruned model."""
    terms = [term for call in graph.graph.calls for term in call_terms(graph, call)]
    return lambda kept: sum(count * size(kept) / size.whole for count, size in terms)


def energy_cost(graph):
    """Energy, equal to the total of `kc.profile.energy` of the pruned model."""
    # Above this floor.
    from keras_compress.profile.energy import get_hierarchy
    from keras_compress.profile.workload import workloads

    hierarchy = get_hierarchy("eyeriss")
    calls = _layer_calls(graph)
    weights = _KeptWeights(graph)

    def cost(kept):
        weights.kept = kept
        return sum(hierarchy.energy(one) for call in calls for one in workloads(call, weights))

    return cost


def latency_cost(graph, table=None):
    """Seconds on LiteRT: the sum over the layers of a `kc.profile.LatencyTable`.

    Args:
        graph: The `ChannelGraph`.
        table: The table; `None` to measure one.
    """
    # Above this floor.
    from keras_compress.profile.latency_table import channel_ends, latency_table

    table = latency_table(graph.model) if table is None else table
    terms = []
    for call in graph.graph.calls:
        ends = channel_ends(call.operation)
        if ends is not None:
            sizes = [
                _Size(graph, end[0], axes=(end[1],)) if end else (lambda kept: 1) for end in ends
            ]
            terms.append(("/".join(call.path), *sizes))
    return lambda kept: sum(table.seconds(n, ins(kept), outs(kept)) for n, ins, outs in terms)


def _layer_calls(graph):
    from keras_compress.profile.macs import LayerCall

    return [
        LayerCall(call.operation, tuple(v.shape for v in call.inputs), call.output.shape)
        for call in graph.graph.calls
        if isinstance(call.operation, keras.layers.Layer) and call.operation.weights
    ]


class _KeptWeights:
    """Sizes of variables without the channels that are not `kept`, for `workloads`."""

    def __init__(self, graph):
        self._graph = graph
        self._zeros = {}
        self.kept = None

    def shape(self, variable):
        positions = self._graph.positions(variable)
        return tuple(
            int(np.count_nonzero(self.kept[positions[axis]])) if axis in positions else size
            for axis, size in enumerate(variable.shape)
        )

    def nonzeros(self, variable):
        if id(variable) not in self._zeros:
            array = keras.ops.convert_to_numpy(variable) == 0
            self._zeros[id(variable)] = array if array.any() else None
        zeros = self._zeros[id(variable)]
        size = math.prod(self.shape(variable))
        if zeros is None:
            return size
        for axis, channels in self._graph.positions(variable).items():
            zeros = np.compress(self.kept[channels], zeros, axis)
        return size - int(np.count_nonzero(zeros))


def call_terms(graph, call):
    """The multiply-accumulates of a call as a sum of counts, each in proportion to a variable.

    Returns:
        List of `(count, size)`, where `size` is a `_Size`.
    """
    # Above this floor; only the whole count is asked for.
    from keras_compress.profile.macs import LayerCall, call_macs

    layer = call.operation
    if not isinstance(layer, keras.layers.Layer) or not layer.weights:
        return []
    if isinstance(layer, keras.layers.MultiHeadAttention):
        return _attention_terms(graph, call)
    count = call_macs(LayerCall(layer, tuple(v.shape for v in call.inputs), call.output.shape))
    sizes = [_Size(graph, v) for v in _own(layer) if len(v.shape) > 1] if count else []
    # Where a layer has several kernels, each is used as often as the others.
    whole = sum(size.whole for size in sizes)
    return [(count * size.whole / whole, size) for size in sizes]


def _attention_terms(graph, call):
    layer, shapes = call.operation, [value.shape for value in call.inputs]
    queries, keys = (math.prod(shape[1:-1]) for shape in shapes[:2])
    key_dim = layer.key_dim
    terms = [
        (positions * math.prod(part.kernel.shape), _Size(graph, part.kernel))
        for part, positions in (
            (layer.query_dense, queries),
            (layer.key_dense, keys),
            (layer.value_dense, keys),
            (layer.output_dense, queries),
        )
    ]
    scores = layer.num_heads * queries * keys * (key_dim + (layer.value_dim or key_dim))
    return [*terms, (scores, _Size(graph, layer.output_dense.kernel, axes=(0,)))]


class _Size:
    """Number of elements of a variable once channels are gone.

    Args:
        graph: The `ChannelGraph`.
        variable: The variable.
        axes: Axes to count; all by default.
    """

    def __init__(self, graph, variable, axes=None):
        axes = range(len(variable.shape)) if axes is None else axes
        positions = graph.positions(variable)
        self.fixed = math.prod(variable.shape[axis] for axis in axes if axis not in positions)
        self.channels = [positions[axis] for axis in axes if axis in positions]
        self.whole = math.prod(variable.shape[axis] for axis in axes)

    def __call__(self, kept):
        return self.fixed * math.prod(int(np.count_nonzero(kept[c])) for c in self.channels)


def _own(layer):
    return [v for v in layer.weights if not v.path.endswith("seed_generator_state")]


def _variables(graph):
    seen = {}
    for call in graph.graph.calls:
        if isinstance(call.operation, keras.layers.Layer):
            seen.update((id(v), v) for v in _own(call.operation))
    return list(seen.values())
