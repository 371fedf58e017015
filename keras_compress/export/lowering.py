"""From a stored kernel to the tensors and operations of stock LiteRT that run it.

What is chosen here is measured: `benchmarks/README.md` has the figures. In short, on one thread:

- FULLY_CONNECTED has hybrid kernels (float in and out, inputs quantised to int8 on the fly) for
  int8, int4 and int2 weights: the fastest form of a dense layer, and of a 1x1 convolution.
- CONV_2D has a fast one for int8 weights only. Lower bits keep their size as patches and
  FULLY_CONNECTED, at a part of that speed.
- What no native integer holds is decoded once, at the first invocation, into an int8 variable
  (`decode_once`). Decoding into float would cost six times as much at each call: a variable is
  copied and repacked every time.
- DENSIFY of a sparse constant is done at load; from there on it is a dense float kernel.
"""

import dataclasses
import functools

import numpy as np

from keras_compress.export.decode_once import hashed_weights, table_weights
from keras_compress.export.flatbuffer import pack
from keras_compress.export.patches import patches
from keras_compress.export.sparsity import csr
from keras_compress.layers.stored_kernel import (
    CodebookKernel,
    GridKernel,
    HashedKernel,
    SparseKernel,
    grid_of,
)

_TYPES = {8: "INT8", 4: "INT4", 2: "INT2"}
#: First version of an operation that takes weights of so few bits.
_VERSIONS = {"FULLY_CONNECTED": {8: 5, 4: 9, 2: 9}, "CONV_2D": {8: 5}}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Form, operation and exactness, as of `writer.StoredLayer`."""

    form: str
    kernel: str
    exact: bool = False


@functools.singledispatch
def lower(kernel, site, geometry, optimize_for):
    """Emits the operations of one kernel at its site; returns an `Outcome`."""
    raise TypeError(f"{type(kernel).__name__} has no form in a .tflite.")


@lower.register
def _(kernel: GridKernel, site, geometry, optimize_for):
    if optimize_for == "size" and 1 < len(np.unique(kernel.ints)) <= 3:
        # Two or three levels take less as symbols in bytes than as int2.
        levels, symbols = np.unique(kernel.ints, return_inverse=True)
        return _decoded(
            site, geometry, symbols.reshape(kernel.shape), levels, kernel.scale, kernel.shape
        )
    if geometry is None or _is_pointwise(kernel, geometry):
        return _fully_connected(site, _strided(site, geometry), kernel)
    if optimize_for == "latency" or kernel.bits == 8:
        return _convolution(site, kernel, geometry)
    return _fully_connected(site, patches(site, kernel.shape[:2], geometry), kernel)


@lower.register
def _(kernel: CodebookKernel, site, geometry, optimize_for):
    grid = grid_of(kernel.values)
    if grid is not None:
        ints, step = grid
        return lower(GridKernel(ints[kernel.codes], step), site, geometry, optimize_for)
    ints, step = nearest_grid(kernel.values)
    by_conv = geometry is not None and not _is_pointwise(kernel, geometry)
    if len(kernel.values) > 16 or (by_conv and optimize_for == "latency"):
        rounded = GridKernel(ints[kernel.codes], step)
        outcome = lower(rounded, site, geometry, "latency")
        return dataclasses.replace(outcome, form="int8, nearest to the codebook")
    return _decoded(site, geometry, kernel.codes, ints, step, kernel.shape)


@lower.register
def _(kernel: HashedKernel, site, geometry, optimize_for):
    ints, step = nearest_grid(kernel.values)
    weights = hashed_weights(site, ints, step, kernel.seed, kernel.shape)
    _emit_fully_connected(site, site.input, weights, version=5)
    return Outcome(f"{len(ints):,} int8 values, hashed once", "FULLY_CONNECTED int8 variable")


@lower.register
def _(kernel: SparseKernel, site, geometry, optimize_for):
    rows = np.ascontiguousarray(np.moveaxis(kernel.dense(), -1, 0))
    values, sparsity = csr(site.schema, rows)
    stored = site.constant("kernel", rows, content=values.tobytes(), type_name="FLOAT32")
    site.graph.tensor(stored).sparsity = sparsity
    site.nbytes += sum(
        np.asarray(part.values).nbytes
        for metadata in sparsity.dimMetadata
        for part in (metadata.arraySegments, metadata.arrayIndices)
        if part is not None
    )
    dense = site.graph.add_tensor(f"{site.name}/dense", rows.shape, "FLOAT32")
    site.emit("DENSIFY", [stored], [dense], site.schema.DensifyOptionsT())
    if geometry is None:
        _emit_fully_connected(site, site.input, dense, version=1)
    else:
        _emit_convolution(site, dense, geometry, version=1)
    name = "FULLY_CONNECTED" if geometry is None else "CONV_2D"
    return Outcome(f"float32 sparse, {kernel.density:.0%} kept", f"{name} float32", exact=True)


def nearest_grid(values):
    """int8 grid that a few values lie nearest to.

    Args:
        values: 1-D float array.

    Returns:
        `(ints, step)`: int8 array and float, with `ints * step` near `values` in the least-squares
        sense: a step somewhat above `max|values| / 127` often suits the values better.
    """
    values = np.asarray(values, "float64")
    largest = float(np.abs(values).max()) or 1.0
    sample = values if len(values) <= 4096 else values[:: len(values) // 4096]
    steps = largest / np.linspace(127.0, 96.0, 249)
    errors = [np.sum((np.round(sample / step) * step - sample) ** 2) for step in steps]
    step = steps[int(np.argmin(errors))]
    return np.clip(np.round(values / step), -127, 127).astype(np.int8), np.float32(step)


def _fully_connected(site, inputs, kernel):
    ints = np.moveaxis(kernel.ints, -1, 0)
    rows = np.ascontiguousarray(ints.reshape(len(ints), -1))
    bits = kernel.bits
    weights = site.constant(
        "kernel", rows, kernel.scale, type_name=_TYPES[bits], content=pack(rows, bits)
    )
    _emit_fully_connected(site, inputs, weights, _VERSIONS["FULLY_CONNECTED"][bits])
    return Outcome(f"int{bits}", f"FULLY_CONNECTED int{bits}")


def _convolution(site, kernel, geometry):
    filters = np.ascontiguousarray(np.moveaxis(kernel.ints, -1, 0))
    scale = np.broadcast_to(kernel.scale, len(filters))
    weights = site.constant("kernel", filters, scale)
    _emit_convolution(site, weights, geometry, _VERSIONS["CONV_2D"][8])
    return Outcome("int8", "CONV_2D int8")


def _decoded(site, geometry, symbols, levels, scale, shape):
    """Symbols packed in bytes, decoded once into an int8 variable."""
    rows = np.moveaxis(symbols, -1, 0).reshape(shape[-1], -1)
    if geometry is None or _is_pointwise(symbols, geometry):
        inputs = _strided(site, geometry)
    else:
        inputs = patches(site, shape[:2], geometry)
    weights, bits = table_weights(site, rows, levels, scale)
    _emit_fully_connected(site, inputs, weights, version=5)
    return Outcome(f"{bits:.3g}-bit codes, decoded once", "FULLY_CONNECTED int8 variable")


def _is_pointwise(kernel, geometry):
    return geometry is not None and tuple(kernel.shape[:2]) == (1, 1)


def _strided(site, geometry):
    """Input of a pointwise product: every stride-th position."""
    if geometry is None or max(geometry.strides) == 1:
        return site.input
    return patches(site, (1, 1), geometry)


def _emit_fully_connected(site, inputs, weights, version):
    options = site.schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = site.activation
    options.keepNumDims = len(site.output_shape) > 2
    operands = [inputs, weights, site.bias]
    site.emit("FULLY_CONNECTED", operands, [site.output], options, version)


def _emit_convolution(site, weights, geometry, version):
    bias = site.bias
    if bias == -1:
        bias = site.constant("bias", np.zeros(site.output_shape[-1], "float32"))
    options = site.schema.Conv2DOptionsT()
    kinds = site.schema.Padding
    options.padding = kinds.SAME if geometry.padding == "same" else kinds.VALID
    options.strideH, options.strideW = geometry.strides
    options.dilationHFactor, options.dilationWFactor = geometry.dilation_rate
    options.fusedActivationFunction = site.activation
    site.emit("CONV_2D", [site.input, weights, bias], [site.output], options, version)
