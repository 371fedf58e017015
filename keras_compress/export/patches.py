"""A convolution's receptive fields as rows, so that FULLY_CONNECTED can run it."""


def patches(site, kernel_size, geometry):
    """Emits PAD, STRIDED_SLICE and CONCATENATION that lower the input of a convolution.

    Args:
        site: The `Site`. Height and width of its input are known.
        kernel_size: `(height, width)`.
        geometry: `Convolution`, channels last.

    Returns:
        Index of a tensor `(batch, out_height, out_width, height * width * channels)`.
    """
    schema = site.schema
    batch, *size, channels = site.signature(site.input)
    out = site.output_shape[1:3]
    inputs = site.input
    totals = border(site, kernel_size, geometry)
    if any(totals):
        padding = [[0, 0], *([t // 2, t - t // 2] for t in totals), [0, 0]]
        size = [length + total for length, total in zip(size, totals, strict=True)]
        padded = site.value("padded", [batch, *size, channels])
        site.emit("PAD", [inputs, site.indices("padding", padding)], [padded], schema.PadOptionsT())
        inputs = padded
    parts = []
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            begin = [row * geometry.dilation_rate[0], column * geometry.dilation_rate[1]]
            end = [
                b + (o - 1) * stride + 1
                for b, o, stride in zip(begin, out, geometry.strides, strict=True)
            ]
            part = site.value("part", [batch, *out, channels])
            # Batch and channels are taken whole.
            emit_slice(site, inputs, part, [0, *begin, 0], [0, *end, 0], geometry.strides, 0b1001)
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    rows = site.value("patches", [batch, *out, len(parts) * channels])
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    site.emit("CONCATENATION", parts, [rows], options)
    return rows


def border(site, kernel_size, geometry):
    """Rows and columns of zeros that a convolution adds to its input.

    Args:
        site: The `Site`.
        kernel_size: `(height, width)`.
        geometry: `Convolution`, channels last.

    Returns:
        `(rows, columns)`, both sides together. Of an open side, the largest number.
    """
    if geometry.padding == "valid":
        return (0, 0)
    spans = [(k - 1) * d for k, d in zip(kernel_size, geometry.dilation_rate, strict=True)]
    lengths = zip(site.signature(site.input)[1:3], geometry.strides, spans, strict=True)
    return tuple(
        # The last window begins at the last multiple of the stride within the input.
        max(0, span if length == -1 else (length - 1) // stride * stride + span + 1 - length)
        for length, stride, span in lengths
    )


def strided(site, strides):
    """Emits a STRIDED_SLICE that takes every stride-th position: the input of a 1x1 convolution.

    Args:
        site: The `Site`. Height and width of its input may be open.
        strides: `(height, width)`.

    Returns:
        Index of a tensor `(batch, out_height, out_width, channels)`.
    """
    shape = [*site.signature(site.output)[:3], site.input_shape[3]]
    part = site.value("part", shape)
    emit_slice(site, site.input, part, [0] * 4, [0] * 4, strides, 0b1111)
    return part


def emit_slice(site, inputs, output, begin, end, strides, mask):
    """STRIDED_SLICE that ignores begin and end of the axes in the mask."""
    options = site.schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = mask
    operands = [("begin", begin), ("end", end), ("strides", [1, *strides, 1])]
    constants = [site.indices(label, values) for label, values in operands]
    site.emit("STRIDED_SLICE", [inputs, *constants], [output], options)
