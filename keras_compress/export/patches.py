"""A convolution's receptive fields as rows, so that FULLY_CONNECTED can run it."""

import numpy as np


def patches(site, kernel_size, geometry):
    """Emits PAD, STRIDED_SLICE and CONCATENATION that lower the input of a convolution.

    Args:
        site: The `Site`.
        kernel_size: `(height, width)`.
        geometry: `Convolution`, channels last.

    Returns:
        Index of a tensor `(batch, out_height, out_width, height * width * channels)`.
    """
    schema = site.schema
    batch, *size, channels = site.input_shape
    out = site.output_shape[1:3]
    spans = [(k - 1) * d for k, d in zip(kernel_size, geometry.dilation_rate, strict=True)]
    inputs = site.input
    if geometry.padding == "same":
        totals = [
            max(0, (o - 1) * stride + span + 1 - length)
            for o, stride, span, length in zip(out, geometry.strides, spans, size, strict=True)
        ]
        if any(totals):
            padding = [[0, 0], *([t // 2, t - t // 2] for t in totals), [0, 0]]
            size = [length + total for length, total in zip(size, totals, strict=True)]
            amounts = site.graph.add_constant(f"{site.name}/padding", np.array(padding, np.int32))
            padded = site.value("padded", [batch, *size, channels])
            site.emit("PAD", [inputs, amounts], [padded], schema.PadOptionsT())
            inputs = padded
    strides = site.graph.add_constant(
        f"{site.name}/strides", np.array([1, *geometry.strides, 1], np.int32)
    )
    parts = []
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            begin = [row * geometry.dilation_rate[0], column * geometry.dilation_rate[1]]
            end = [
                b + (o - 1) * stride + 1
                for b, o, stride in zip(begin, out, geometry.strides, strict=True)
            ]
            ends = [
                site.graph.add_constant(f"{site.name}/{label}", np.array(value, np.int32))
                for label, value in (("begin", [0, *begin, 0]), ("end", [0, *end, 0]))
            ]
            part = site.value("part", [batch, *out, channels])
            options = schema.StridedSliceOptionsT()
            # Batch and channels are taken whole.
            options.beginMask = options.endMask = 0b1001
            site.emit("STRIDED_SLICE", [inputs, *ends, strides], [part], options)
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    rows = site.value("patches", [batch, *out, len(parts) * channels])
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    site.emit("CONCATENATION", parts, [rows], options)
    return rows
