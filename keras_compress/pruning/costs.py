"""What a model costs when some of its channels are gone, without building it."""

import math

import keras
import numpy as np


def cost_of(what, graph):
    """A function from which channels stay to a cost.

    Args:
        what: `"macs"`, `"bytes"`, `"energy"` or `"latency"`.
        graph: `ChannelGraph` of the model.

    Returns:
        Function `kept -> float`, where `kept` is a boolean array over the channel numbers.
    """
    return {"macs": macs_cost, "bytes": bytes_cost}[what](graph)


def bytes_cost(graph):
    """Bytes of all weights as float32."""
    sizes = [_Size(graph, v) for v in _variables(graph)]
    return lambda kept: 4.0 * sum(size(kept) for size in sizes)


def macs_cost(graph):
    """Multiply-accumulates, equal to `kc.profile.macs` of the pruned model."""
    terms = [term for call in graph.graph.calls for term in call_terms(graph, call)]
    return lambda kept: sum(count * size(kept) / size.whole for count, size in terms)


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
