"""`activation_sparsity`: which layers could skip how much, for the zeros in their inputs."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_compress.call_graph import CallGraph
from keras_compress.convert import check_graph
from keras_compress.ops.windows import axes_of
from keras_compress.pruning.criteria.observer import Observer, compiled
from keras_compress.samples import Samples
from keras_compress.tables import Table


@dataclasses.dataclass(frozen=True)
class LayerZeros:
    """Zeros in the inputs of one call of a layer.

    Attributes:
        name: Name of the layer, with those of the models around it.
        zeros: Share of its inputs that are zero.
        skipped: Share of its multiply-accumulates that have such an input; zeros of padding do not
            count as inputs, and no product is counted for them.
        macs: Multiply-accumulates of one sample, without those of padding.
    """

    name: str
    zeros: float
    skipped: float
    macs: int


class ActivationSparsity:
    """The zeros in the inputs of a model's layers; prints as a table.

    Args:
        layers: List of `LayerZeros`, in the order of the calls.
    """

    def __init__(self, layers):
        self.layers = layers

    @property
    def skipped(self):
        """Share of all multiply-accumulates that have a zero input."""
        return sum(one.skipped * one.macs for one in self.layers) / sum(
            one.macs for one in self.layers
        )

    def table(self):
        """The layers as a `Table`."""
        rows = [
            [one.name, f"{one.zeros:.1%}", f"{one.macs:,}", f"{one.skipped:.1%}"]
            for one in self.layers
        ]
        rows.append(["all", "", f"{sum(one.macs for one in self.layers):,}", f"{self.skipped:.1%}"])
        return Table(["layer", "zero inputs", "MACs", "could be skipped"], rows)

    def __str__(self):
        return str(self.table())

    def _repr_html_(self):
        return self.table().to_html()


def activation_sparsity(model, data, *, batch_size=64):
    """Counts the zeros that reach each dense and convolution layer, from one pass over data.

    After ReLU many inputs are zero, and a product with zero can be skipped, by hardware or by
    `kc.sparse.relu_sparse_conv2d`, which takes one axpy for each product with a nonzero input and
    its row of weights. All layers are counted in one compiled pass; nothing but the counts leaves
    it.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        data: Array, list or dict of arrays, `(x, y)`, or batches of those.
        batch_size: Rows of a batch, where `data` is arrays.

    Returns:
        An `ActivationSparsity`.

    Raises:
        ValueError: if the model has no graph or no such layer, a shape is open, or data do not fit.

    Reference:
        Shi, Chu, "Speeding up Convolutional Neural Networks by Exploiting the Sparsity of Rectifier
        Units", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="fc")])
    >>> print(kc.profile.activation_sparsity(model, np.array([[1.0, 0, 0, 2], [0, 0, 0, 3]])))
    layer  zero inputs  MACs  could be skipped
    -----  -----------  ----  ----------------
    fc           62.5%    32             62.5%
    all                   32             62.5%
    """
    owner = "activation_sparsity"
    check_graph(model, owner)
    graph = CallGraph(model)
    calls = [call for call in graph.calls if _is_counted(call.operation)]
    if not calls:
        raise ValueError(
            f"{owner}: model '{model.name}' has no Dense, Conv2D or DepthwiseConv2D layer."
        )
    observer = Observer(graph, [call.inputs[0] for call in calls])
    touches = [_touches(call) for call in calls]

    def count(inputs):
        pairs = zip(observer.run(inputs), touches, strict=True)
        counts = []
        for tensor, touch in pairs:
            nonzero = ops.cast(ops.not_equal(tensor, 0), "float32")
            # Sums of a sample: float32 counts exactly up to 2^24.
            axes = tuple(range(1, len(nonzero.shape)))
            counts += [ops.sum(nonzero, axes), ops.sum(ops.multiply(nonzero, touch), axes)]
        return counts

    count = compiled(count)
    totals, samples = np.zeros(2 * len(calls)), 0
    for inputs, _ in Samples(model, data, batch_size, owner=owner):
        counts = count([ops.convert_to_tensor(array) for array in inputs])
        totals += [ops.convert_to_numpy(one).astype("float64").sum() for one in counts]
        samples += len(inputs[0])
    rows = []
    for index, (call, touch) in enumerate(zip(calls, touches, strict=True)):
        shape = call.inputs[0].shape[1:]
        nonzero, products = totals[2 * index : 2 * index + 2] / samples
        every = float(np.broadcast_to(touch, (1, *shape)).astype("float64").sum())
        rows.append(
            LayerZeros(
                "/".join(call.path),
                1 - nonzero / np.prod(shape),
                1 - products / every,
                round(every * _filters(call.operation)),
            )
        )
    return ActivationSparsity(rows)


def _is_counted(layer):
    kinds = (keras.layers.Dense, keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    return isinstance(layer, kinds)


def _filters(layer):
    """Outputs at a position that an input is multiplied for."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return layer.depth_multiplier
    if isinstance(layer, keras.layers.Dense):
        return layer.units
    return layer.filters // layer.groups


def _touches(call):
    """How many output positions each input of a sample touches: an array that broadcasts."""
    layer, shape = call.operation, call.inputs[0].shape
    if None in shape[1:]:
        raise ValueError(
            f"activation_sparsity: layer '{layer.name}' has an open input shape {shape}; build "
            "the model with a keras.Input of a fixed shape."
        )
    if isinstance(layer, keras.layers.Dense):
        return np.ones((1,) * len(shape), "float32")
    first = layer.data_format == "channels_first"
    geometry = (layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    axes = axes_of(shape[2:] if first else shape[1:3], *geometry, owner="activation_sparsity")
    counts = []
    for axis in axes:
        count = np.zeros(axis.length, "float32")
        for tap in range(axis.kernel):
            count[axis.read(tap)[1]] += 1
        counts.append(count)
    touch = np.outer(*counts)
    return touch[None, None] if first else touch[None, ..., None]
