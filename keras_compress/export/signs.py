"""Stored kernels whose inputs are signs, -1 and 1: exact although LiteRT rounds inputs to int8.

XNNPACK spreads the 255 steps of int8 from the smallest input to the largest. Between -1 and 1 zero
falls half-way between two steps, and each output is off by `sum(w) / 255`; between 0 and 1 nothing
is rounded, and neither is it by LiteRT's kernels without XNNPACK. So the layer gives
`b = (x >= 0)`, and `x @ w = b @ 2w - sum(w)`: the last term is a part of the bias.

At the border of a padded convolution x is 0, and b would be 1/2, which is no step. There b is 0,
which takes the term of the weights outside of the image out of the sum: they must not be
subtracted. Where the integers allow it, another input channel, 1 inside of the image, subtracts
the right ones within the same int8 CONV_2D; else a CONV_2D of that channel alone does.
"""

import functools

import numpy as np
from keras import ops

from keras_compress.export.lowering import emit_convolution, lower, nearest_grid
from keras_compress.export.patches import border, emit_slice
from keras_compress.layers.stored_kernel import CodebookKernel, GridKernel, grid_of


def positive(inputs, training=None):
    """The `b` of signs: 1 where `kc.quantizers.Sign` gives 1, and 0 where it gives -1."""
    return ops.cast(ops.greater_equal(inputs, 0), "float32")


def lower_signs(kernel, site, geometry, optimize_for):
    """As `lowering.lower`, of a kernel that multiplies signs, at a site whose input is `b`."""
    subtracted = -_as_run(kernel).sum(axis=-2, dtype="float64")
    if geometry is None or not any(border(site, kernel.shape[:2], geometry)):
        _add_to_bias(site, subtracted.reshape(-1, kernel.shape[-1]).sum(axis=0))
        return lower(_doubled(kernel), site, geometry, optimize_for)
    # At the few bits of a small file the sums of weights would not fit beside the weights.
    widened = _with_sums(kernel) if optimize_for == "latency" else None
    if widened is not None:
        site.input = _with_ones(site)
        return lower(widened, site, geometry, optimize_for)
    output, activation = site.output, site.activation
    site.activation = site.schema.ActivationFunctionType.NONE
    sums = _convolved_ones(site, geometry, kernel, subtracted)
    site.output = site.value("products", site.signature(output))
    outcome = lower(_doubled(kernel), site, geometry, optimize_for)
    options = site.schema.AddOptionsT()
    options.fusedActivationFunction = activation
    site.emit("ADD", [site.output, sums], [output], options)
    return outcome


@functools.singledispatch
def _as_run(kernel):
    """The float kernel that LiteRT will multiply with."""
    raise TypeError(f"{type(kernel).__name__} does not multiply signs.")


@_as_run.register
def _(kernel: GridKernel):
    return kernel.dense()


@_as_run.register
def _(kernel: CodebookKernel):
    ints, step = grid_of(kernel.values) or nearest_grid(kernel.values)
    return ints[kernel.codes] * step


def _doubled(kernel):
    if isinstance(kernel, GridKernel):
        return GridKernel(kernel.ints, 2 * kernel.scale)
    return CodebookKernel(kernel.codes, 2 * kernel.values)


def _with_sums(kernel):
    """The doubled kernel with the negative sums of its channels as one more, or `None`."""
    if not isinstance(kernel, GridKernel) or kernel.bits is None:
        return None
    ints, scale = kernel.ints.astype(int), kernel.scale
    sums = ints.sum(axis=2, keepdims=True)
    if np.any(sums % 2):
        ints = 2 * ints
    else:
        sums, scale = sums // 2, 2 * scale
    ints = np.concatenate([ints, -sums], axis=2)
    return GridKernel(ints, scale) if np.abs(ints).max() <= 127 else None


def _with_ones(site):
    """Emits PADV2: the input with one more channel, of ones."""
    *shape, channels = site.signature(site.input)
    padded = site.value("with_ones", [*shape, channels + 1])
    one = site.graph.add_constant(f"{site.name}/one", np.float32(1))
    padding = site.indices("padding", [[0, 0]] * 3 + [[0, 1]])
    site.emit("PADV2", [site.input, padding, one], [padded], site.schema.PadV2OptionsT())
    return padded


def _convolved_ones(site, geometry, kernel, subtracted):
    """Emits the convolution of an image of ones, with the bias of the site, which it takes over.

    Args:
        site: The `Site`.
        geometry: `Convolution`.
        kernel: The stored kernel.
        subtracted: Its negative sums over the channels: array `(height, width, filters)`.
    """
    inputs = site.input
    shape = [*site.signature(inputs)[:3], 1]
    first, ones = site.value("first", shape), site.value("ones", shape)
    emit_slice(site, inputs, first, [0] * 4, [0, 0, 0, 1], (1, 1), 0b0111)
    one = site.graph.add_constant(f"{site.name}/one", np.float32(1))
    site.emit("MAXIMUM", [first, one], [ones], site.schema.MaximumMinimumOptionsT())
    site.input, output = ones, site.output
    site.output = sums = site.value("sums", site.signature(output))
    ints = (
        -kernel.ints.sum(axis=2, keepdims=True, dtype=int)
        if isinstance(kernel, GridKernel)
        else None
    )
    if ints is not None and np.abs(ints).max() <= 127:
        lower(GridKernel(ints, kernel.scale), site, geometry, "latency")
    else:
        weights = np.moveaxis(subtracted, -1, 0)[..., None].astype("float32")
        emit_convolution(site, site.constant("sums", weights), geometry, version=1)
    site.input, site.output, site.bias = inputs, output, -1
    return sums


def _add_to_bias(site, values):
    values = values.astype("float32")
    if site.bias == -1:
        site.bias = site.constant("bias", values)
        return
    bias = np.frombuffer(site.flatbuffer.data(site.graph.tensor(site.bias)), "float32")
    site.bias = site.graph.add_constant(f"{site.name}/bias", bias + values)
