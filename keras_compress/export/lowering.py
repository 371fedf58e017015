"""From a stored kernel to the tensors and operations of stock LiteRT that run it.

What is chosen here is measured: `benchmarks/README.md` has the figures. In short, on one thread:

- FULLY_CONNECTED has hybrid kernels (float in and out, inputs quantised to int8 on the fly) for
  int8, int4 and int2 weights: the fastest form of a dense layer, and of a 1x1 convolution. Rows of
  int4 and int2 weights follow each other without padding. One scale for the whole tensor is as good
  as one for each output, which cost 12 bytes each, but not for int2: XNNPACK leaves that to a
  kernel several times slower.
- CONV_2D has a fast one for int8 weights only. Lower bits keep their size as patches and
  FULLY_CONNECTED, at a part of that speed.
- What no native integer holds is decoded once, at the first invocation, into an int8 variable
  (`decode_once`). Decoding into float would cost six times as much at each call: a variable is
  copied and repacked every time.
- DENSIFY of a sparse constant, and DEQUANTIZE of one, are done at load; from there on it is a dense
  float kernel.
- Blocks of zeros are left out of the computation too (`block_sparse`).
"""

import dataclasses
import functools
import math

import numpy as np

from keras_compress.export import block_sparse
from keras_compress.export.decode_once import (
    hashed_weights,
    symbols_per_byte,
    table_weights,
    vector_weights,
)
from keras_compress.export.flatbuffer import pack
from keras_compress.export.patches import patches, strided
from keras_compress.export.sparsity import csr, index_bytes
from keras_compress.layers.stored_kernel import (
    BlockSparseKernel,
    CodebookKernel,
    GridKernel,
    HashedKernel,
    SparseKernel,
    VectorCodebookKernel,
    grid_of,
)

_VARIABLE = "FULLY_CONNECTED int8 variable"
_TYPES = {8: "INT8", 4: "INT4", 2: "INT2"}
#: First version of an operation that takes weights of so few bits.
_VERSIONS = {"FULLY_CONNECTED": {8: 5, 4: 9, 2: 9}, "CONV_2D": {8: 5}}
#: Bytes of a scale and its zero point.
_SCALE_BYTES = 12
#: Bytes that the operations and tensors of a decoder take in the file, without its table.
_DECODER_BYTES = 2000
#: Bytes that the slice of one kernel position takes in the file.
_TAP_BYTES = 400


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
    if kernel.bits is None:
        return _widened(site, kernel, geometry)
    as_rows = _runs_as_rows(site, kernel.shape, geometry)
    pointwise = _is_pointwise(kernel.shape, geometry)
    if optimize_for == "size" and pointwise and 1 < len(np.unique(kernel.ints)) <= 3:
        # Two or three levels take less as symbols in bytes than as int2. Not on patches: there a
        # variable is twenty times slower than int2.
        levels, symbols = np.unique(kernel.ints, return_inverse=True)
        native = _native_bytes(kernel, 2)
        if _decoded_bytes(kernel.shape, len(levels), geometry) < native:
            return _decoded(site, geometry, symbols, levels, kernel.scale, kernel.shape)
    if not pointwise:
        patched = _native_bytes(kernel, kernel.bits) + _patch_bytes(kernel.shape, geometry)
        larger = patched >= _native_bytes(kernel, 8)
        if optimize_for == "latency" or not as_rows or larger:
            return _convolution(site, kernel, geometry)
    return _fully_connected(site, _rows_of_inputs(site, kernel.shape, geometry), kernel)


@lower.register
def _(kernel: CodebookKernel, site, geometry, optimize_for):
    grid = grid_of(kernel.values)
    if grid is not None:
        ints, step = grid
        return lower(GridKernel(ints[kernel.codes], step), site, geometry, optimize_for)
    ints, step = nearest_grid(kernel.values)
    slow = optimize_for == "latency" and not _is_pointwise(kernel.shape, geometry)
    decodes = (
        len(kernel.values) <= 16
        and not slow
        and _runs_as_rows(site, kernel.shape, geometry)
        and _decoded_bytes(kernel.shape, len(kernel.values), geometry) < math.prod(kernel.shape)
    )
    if decodes:
        return _decoded(site, geometry, kernel.codes, ints, step, kernel.shape)
    if optimize_for == "size" and len(kernel.values) <= 128:
        # Five to seven bits take more operations to unpack, and run slower than int8 constants.
        vectors = VectorCodebookKernel(kernel.codes[None], kernel.values.reshape(1, 1, -1, 1))
        return lower(vectors, site, geometry, optimize_for)
    outcome = lower(GridKernel(ints[kernel.codes], step), site, geometry, "latency")
    return dataclasses.replace(outcome, form=f"{outcome.form}, nearest to the codebook")


@lower.register
def _(kernel: VectorCodebookKernel, site, geometry, optimize_for):
    ints, step = _nearest_centres(kernel)
    stages, _, k, _ = kernel.centres.shape
    nbytes = kernel.codes.size * (k - 1).bit_length() // 8 + ints.size
    slow = optimize_for == "latency" and not _is_pointwise(kernel.shape, geometry)
    decodes = (
        not slow
        and _runs_as_rows(site, kernel.shape, geometry)
        and nbytes + 2 * _DECODER_BYTES * stages + _patch_bytes(kernel.shape, geometry)
        < math.prod(kernel.shape)
    )
    if not decodes:
        whole = np.round(kernel.dense() / step)
        outcome = lower(GridKernel(np.clip(whole, -127, 127), step), site, geometry, "latency")
        return dataclasses.replace(outcome, form=f"{outcome.form}, nearest to the codebook")
    inputs = _rows_of_inputs(site, kernel.shape, geometry)
    weights = vector_weights(site, np.moveaxis(kernel.codes, -1, 1), ints, step)
    _emit_fully_connected(site, inputs, weights, version=5)
    bits = 8 * nbytes / math.prod(kernel.shape)
    return Outcome(f"codes of vectors, {bits:.3g} bits a weight, decoded once", _VARIABLE)


@lower.register
def _(kernel: HashedKernel, site, geometry, optimize_for):
    ints, step = nearest_grid(kernel.values)
    slow = optimize_for == "latency" and not _is_pointwise(kernel.shape, geometry)
    if slow or not _runs_as_rows(site, kernel.shape, geometry):
        whole = HashedKernel(ints, kernel.seed, kernel.shape).dense()
        outcome = lower(GridKernel(whole, step), site, geometry, "latency")
        return dataclasses.replace(outcome, form=f"{outcome.form}, hashed before")
    inputs = _rows_of_inputs(site, kernel.shape, geometry)
    weights = hashed_weights(site, ints, step, kernel.seed, kernel.shape)
    _emit_fully_connected(site, inputs, weights, version=5)
    return Outcome(f"{len(ints):,} int8 values, hashed once", _VARIABLE)


@lower.register
def _(kernel: SparseKernel, site, geometry, optimize_for):
    rows = np.ascontiguousarray(np.moveaxis(kernel.kernel, -1, 0))
    values, sparsity = csr(site.schema, rows)
    type_name = site.flatbuffer.type_of(rows.dtype)
    stored = site.constant("kernel", rows, content=values.tobytes(), type_name=type_name)
    site.graph.tensor(stored).sparsity = sparsity
    site.nbytes += index_bytes(sparsity)
    dense = site.graph.add_tensor(f"{site.name}/dense", rows.shape, type_name)
    site.emit("DENSIFY", [stored], [dense], site.schema.DensifyOptionsT())
    if rows.dtype == np.float16:
        dense = site.widened(dense)
    name = emit_product(site, dense, geometry)
    form = f"{rows.dtype.name} sparse, {kernel.density:.0%} kept"
    return Outcome(form, f"{name} float32", exact=rows.dtype == np.float32)


@lower.register
def _(kernel: BlockSparseKernel, site, geometry, optimize_for):
    if not block_sparse.expressible(site):
        return lower(SparseKernel(kernel.kernel), site, geometry, optimize_for)
    block_sparse.block_product(site, kernel)
    dtype, (height, width) = kernel.kernel.dtype, kernel.block
    form = f"{dtype.name} blocks of {height}x{width}, {kernel.occupied.mean():.0%} kept"
    return Outcome(form, "BATCH_MATMUL float32", exact=dtype == np.float32)


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


def _nearest_centres(kernel):
    """int8 centres of a `VectorCodebookKernel` and their step; sums of stages fit int8 too."""
    stages = len(kernel.centres)
    if stages == 1:
        ints, step = nearest_grid(kernel.centres.ravel())
        return ints.reshape(kernel.centres.shape), step
    largest = max(float(np.abs(array).max()) for array in (kernel.centres, kernel.dense())) or 1.0
    # Each stage is off by half a step at most.
    step = np.float32(largest / (127 - stages / 2))
    return np.round(kernel.centres / step).astype(np.int8), step


def _fully_connected(site, inputs, kernel):
    rows = _by_output(kernel.ints)
    bits = kernel.bits
    if bits == 2 and _native_bytes(kernel, 4) <= _native_bytes(kernel, 2):
        bits = 4
    scale = _scales(kernel, bits)
    weights = site.constant("kernel", rows, scale, type_name=_TYPES[bits], content=pack(rows, bits))
    _emit_fully_connected(site, inputs, weights, _VERSIONS["FULLY_CONNECTED"][bits])
    return Outcome(f"int{bits}", f"FULLY_CONNECTED int{bits}")


def _convolution(site, kernel, geometry):
    filters = np.ascontiguousarray(np.moveaxis(kernel.ints, -1, 0))
    weights = site.constant("kernel", filters, _scales(kernel, 8))
    emit_convolution(site, weights, geometry, _VERSIONS["CONV_2D"][8])
    return Outcome("int8", "CONV_2D int8")


def _widened(site, kernel, geometry):
    """int8 that LiteRT's integer kernels do not take, made float at load."""
    filters = np.ascontiguousarray(np.moveaxis(kernel.ints, -1, 0))
    weights = site.widened(site.constant("kernel", filters, _scales(kernel, 8)))
    name = emit_product(site, weights, geometry)
    return Outcome("int8", f"{name} float32", exact=True)


def _decoded(site, geometry, symbols, levels, scale, shape):
    """Symbols packed in bytes, decoded once into an int8 variable."""
    symbols = symbols.reshape(shape)
    inputs = _rows_of_inputs(site, shape, geometry)
    weights, bits = table_weights(site, _by_output(symbols), levels, scale)
    _emit_fully_connected(site, inputs, weights, version=5)
    return Outcome(f"{bits:.3g}-bit codes, decoded once", _VARIABLE)


def _by_output(kernel):
    """A kernel as the matrix (outputs, inputs) that FULLY_CONNECTED takes."""
    kernel = np.moveaxis(kernel, -1, 0)
    return np.ascontiguousarray(kernel.reshape(len(kernel), -1))


def _scales(kernel, bits):
    """The scale of a `GridKernel`, one for each output only where it must be."""
    one = kernel.scale.size == 1 or bool(np.all(kernel.scale == kernel.scale.flat[0]))
    if one and bits != 2:
        return kernel.scale.flat[0]
    return np.broadcast_to(kernel.scale, kernel.shape[-1])


def _native_bytes(kernel, bits):
    scales = np.size(_scales(kernel, bits))
    return -(-math.prod(kernel.shape) * bits // 8) + _SCALE_BYTES * scales


def _decoded_bytes(shape, alphabet, geometry):
    each = symbols_per_byte(alphabet)
    codes = -(-math.prod(shape) // each)
    return codes + 256 * each + _DECODER_BYTES + _patch_bytes(shape, geometry)


def _patch_bytes(shape, geometry):
    return 0 if _is_pointwise(shape, geometry) else _TAP_BYTES * math.prod(shape[:2])


def _is_pointwise(shape, geometry):
    """Whether a kernel is that of a dense layer or of a 1x1 convolution."""
    return geometry is None or tuple(shape[:2]) == (1, 1)


def _runs_as_rows(site, shape, geometry):
    """Whether FULLY_CONNECTED can run it; patches are of an input of known size."""
    return _is_pointwise(shape, geometry) or -1 not in site.signature(site.input)[1:]


def _rows_of_inputs(site, shape, geometry):
    """What FULLY_CONNECTED multiplies: the input, or the patches of a convolution."""
    if not _is_pointwise(shape, geometry):
        return patches(site, shape[:2], geometry)
    if geometry is None or max(geometry.strides) == 1:
        return site.input
    return strided(site, geometry.strides)


def emit_product(site, weights, geometry):
    """Emits the layer's own operation on float weights; returns its name."""
    if geometry is None:
        _emit_fully_connected(site, site.input, weights, version=1)
        return "FULLY_CONNECTED"
    emit_convolution(site, weights, geometry, version=1)
    return "CONV_2D"


def _emit_fully_connected(site, inputs, weights, version):
    options = site.schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = site.activation
    options.keepNumDims = len(site.output_shape) > 2
    operands = [inputs, weights, site.bias]
    site.emit("FULLY_CONNECTED", operands, [site.output], options, version)


def emit_convolution(site, weights, geometry, version):
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
