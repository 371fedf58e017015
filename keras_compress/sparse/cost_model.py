"""Where sparsity pays: the time of a layer with and without its zeros, from a few constants."""

import dataclasses
import functools
import math
import time

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.ops.windows import axes_of
from keras_compress.pruning.criteria.observer import compiled
from keras_compress.sparse.direct_sparse_conv2d import DirectSparseConv2D
from keras_compress.sparse.sparse_dense import SparseDense

#: Bytes of a weight in CSR: value and column index.
_ENTRY = 8


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the cost model knows of a processor.

    Attributes:
        dense_macs: Multiply-accumulates a second of the backend's dense kernels.
        sparse_macs: Those of a product of CSR and dense, in long rows.
        axpy_seconds: Seconds that each row of such a product takes beside.
        bandwidth: Bytes a second that memory reads or writes.
        call_seconds: Seconds that a call of a sparse layer takes beside, whatever its size.
    """

    dense_macs: float
    sparse_macs: float
    axpy_seconds: float
    bandwidth: float
    call_seconds: float = 3e-5

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            validation.number(field.name, value, 0, low_open=True, owner=self)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Time of one layer for a batch, dense and sparse.

    Attributes:
        name: Name of the layer.
        sparsity: Share of its weights that are zero.
        dense_seconds: Of the backend's dense kernel.
        sparse_seconds: Of the sparse one.
        lower: The sparsity from which on the sparse kernel is faster; 1.0 if it never is.
        upper: The sparsity from which on memory decides, and more zeros gain little.
    """

    name: str
    sparsity: float
    dense_seconds: float
    sparse_seconds: float
    lower: float
    upper: float

    @property
    def speedup(self):
        """Time of the dense kernel by that of the sparse one."""
        return self.dense_seconds / self.sparse_seconds

    @property
    def pays(self):
        """Whether the sparse kernel is faster."""
        return self.sparse_seconds < self.dense_seconds

    @property
    def bound(self):
        """What the sparse kernel waits for: `"compute"` or `"bandwidth"`."""
        return "compute" if self.sparsity < self.upper else "bandwidth"


def cost_model(layer, sparsity, *, input_shape=None, batch_size=8, machine=None):
    """Predicts whether a pruned layer is faster by a sparse kernel.

    Both kernels take the longer of the time to compute and the time to move bytes. The dense one
    computes everything; the sparse one an axpy over a row of outputs for each weight that is not
    zero and each output row, and before that it copies rows of its input, whatever the sparsity
    (`DirectSparseConv2D`).

    Args:
        layer: A built `keras.layers.Dense` or `Conv2D`.
        sparsity: Share of zeros, in [0, 1).
        input_shape: Shape of its input with the batch axis; by default that in the layer's model.
        batch_size: Samples that go through at once.
        machine: A `Machine`; by default this one, measured once (about a second).

    Returns:
        A `LayerCost`.

    Raises:
        ValueError: if the layer is another one or not built, or a shape is open.

    Reference:
        Park, Li, Wen, Tang, Li, Chen, Dubey, "Faster CNNs with Direct Sparse Convolutions and
        Guided Pruning", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> machine = kc.sparse.Machine(50e9, 8e9, 2e-9, 20e9)
    >>> layer = keras.layers.Conv2D(64, 3, padding="same")
    >>> layer.build((None, 28, 28, 64))
    >>> cost = kc.sparse.cost_model(layer, 0.95, input_shape=(None, 28, 28, 64), machine=machine)
    >>> cost.pays, round(cost.lower, 2), round(cost.speedup, 1)
    (True, 0.87, 2.2)
    """
    owner = "cost_model"
    if not isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)) or not layer.built:
        raise ValueError(
            f"{owner}: sparse kernels are there for built Dense and Conv2D layers; got "
            f"{type(layer).__name__} '{getattr(layer, 'name', layer)}'."
        )
    sparsity = validation.number("sparsity", sparsity, 0, 1, high_open=True, owner=owner)
    batch = validation.positive_int("batch_size", batch_size, owner)
    machine = measure_machine() if machine is None else machine
    work = _work(layer, input_shape or _input_shape(layer), batch)
    moved = 4 * work.moved / machine.bandwidth
    dense = max(
        work.weights * work.rows * work.length / machine.dense_macs,
        moved + 4 * work.weights / machine.bandwidth,
    )
    # Reading and writing each copied value.
    fixed = machine.call_seconds + 8 * work.lowered / machine.bandwidth
    axpys = work.rows * (machine.axpy_seconds + work.length / machine.sparse_macs)
    entry = _ENTRY / machine.bandwidth

    def sparse(nonzeros):
        return fixed + max(nonzeros * axpys, moved + nonzeros * entry)

    paying = min((dense - fixed) / axpys, (dense - fixed - moved) / entry)
    computing = moved / (axpys - entry) if axpys > entry else math.inf
    return LayerCost(
        layer.name,
        sparsity,
        dense,
        sparse((1 - sparsity) * work.weights),
        1 - min(1.0, max(0.0, paying / work.weights)),
        1 - min(1.0, computing / work.weights),
    )


@functools.cache
def measure_machine():
    """The `Machine` that this process runs on: measured at the first call, then known.

    The constants are those of the very kernels, on a 3x3 convolution of 128 channels. Dense ones
    run on the backend's threads, sparse ones and copies on one.
    """
    rng = np.random.default_rng(0)
    size, channels = 16, 128
    layer = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False)
    layer.build((None, size, size, channels))
    convolve = compiled(layer)
    images = ops.convert_to_tensor(rng.random((2, size, size, channels), "float32"))
    dense_seconds = _seconds(lambda: ops.convert_to_numpy(convolve(images)))
    dense_macs = 2 * size * size * math.prod(layer.kernel.shape) / dense_seconds
    layer.kernel.assign(rng.random(layer.kernel.shape) * (rng.random(layer.kernel.shape) > 0.98))
    op = DirectSparseConv2D(layer)

    def axpy_seconds(batch):
        x = rng.random((size, channels, size, batch), "float32")
        return _seconds(lambda: op.run(x)) / (op.nonzeros * size)

    # They are a line over the length of the row.
    short, long = axpy_seconds(1), axpy_seconds(8)
    slope = max((long - short) / (7 * size), 1e-12)
    beside = max(short - slope * size, 1e-12)
    source = np.ones(2**22, "float32")
    target = source.copy()
    bandwidth = 2 * source.nbytes / _seconds(lambda: np.copyto(target, source))
    tiny = keras.layers.Dense(1)
    tiny.build((1, 1))
    op, row = SparseDense(tiny), np.ones((1, 1), "float32")
    call = _seconds(lambda: op(row))
    return Machine(dense_macs, 1 / slope, beside, bandwidth, call)


def _seconds(function, runs=30):
    """Seconds of the fastest run: short ones, some of which nothing else interrupts."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@dataclasses.dataclass(frozen=True)
class _Work:
    """A layer's work for a batch: each weight is multiplied with `rows` rows of `length` values."""

    weights: int
    rows: int
    length: int
    moved: int
    lowered: int


def _work(layer, shape, batch):
    weights = math.prod(layer.kernel.shape)
    sizes = tuple(shape[1:])
    if None in sizes:
        raise ValueError(
            f"cost_model: the cost of layer '{layer.name}' depends on a size that is open "
            f"({tuple(shape)}); give input_shape=(None, ...) with numbers."
        )
    inputs = batch * math.prod(sizes)
    if isinstance(layer, keras.layers.Dense):
        length = inputs // sizes[-1]
        return _Work(weights, 1, length, inputs + length * layer.units, 0)
    size = sizes[:2] if layer.data_format == "channels_last" else sizes[1:]
    geometry = (layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    rows, columns = axes_of(size, *geometry, owner="cost_model")
    length = columns.windows * batch
    channels = math.prod(sizes) // math.prod(size)
    lowered = rows.padded * channels * columns.kernel * length
    return _Work(
        weights, rows.windows, length, inputs + rows.windows * length * layer.filters, lowered
    )


def _input_shape(layer):
    if not layer._inbound_nodes:
        raise ValueError(
            f"cost_model: layer '{layer.name}' is in no model that tells the shape of its input; "
            "give input_shape=(None, height, width, channels)."
        )
    return tuple(layer._inbound_nodes[-1].input_tensors[0].shape)
