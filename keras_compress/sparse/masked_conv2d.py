"""`masked_conv2d`: a convolution computed only where a mask is not zero."""

import numpy as np

from keras_compress.ops.windows import axes_of


def masked_conv2d(x, kernel, mask, strides=1, padding="valid", dilation_rate=1):
    """2-D convolution whose cost is proportional to the share of outputs that a mask asks for.

    For outputs that are known to be zero, or not wanted, before they are computed: those of
    `kc.layers.LCCLConv2D`. Windows are read at the positions of the mask only, a tap at a time.

    Args:
        x: Array `(batch, height, width, channels)`.
        kernel: Array `(height, width, channels / groups, filters)`.
        mask: Array `(batch, new height, new width, filters)`, or with one channel for all filters:
            not zero where the output is wanted.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        dilation_rate: Integer or pair.

    Returns:
        `(outputs, macs)`: a float32 array `(batch, new height, new width, filters)`, zero where the
        mask is, and how many multiply-accumulates it took: those of padding count.

    Raises:
        ValueError: if an argument is out of range, or shapes do not fit.

    Reference:
        Dong, Huang, Yang, Yan, "More Is Less: A More Complicated Network with Less Inference
        Complexity", 2017.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> x, kernel = np.ones((1, 5, 5, 2)), np.ones((3, 3, 2, 4))
    >>> mask = np.zeros((1, 3, 3, 1))
    >>> mask[0, 1, 1] = 1
    >>> outputs, macs = kc.sparse.masked_conv2d(x, kernel, mask)
    >>> outputs[0, 1, 1].tolist(), float(outputs.sum()), macs
    ([18.0, 18.0, 18.0, 18.0], 72.0, 72)
    """
    owner = "masked_conv2d"
    x, kernel, mask = np.asarray(x, "float32"), np.asarray(kernel, "float32"), np.asarray(mask)
    groups = _groups(x, kernel, owner)
    axes = axes_of(x.shape[1:3], kernel.shape[:2], strides, padding, dilation_rate, owner)
    filters = kernel.shape[3]
    shape = (len(x), axes[0].windows, axes[1].windows)
    if mask.shape not in ((*shape, 1), (*shape, filters)):
        raise ValueError(
            f"{owner}: `mask` must have the shape of the outputs, {(*shape, filters)}, or one "
            f"channel for all; got {mask.shape}."
        )
    padded = np.pad(x, ((0, 0), axes[0].pads, axes[1].pads, (0, 0)))
    outputs = np.zeros((*shape, filters), "float32")
    each, channels = filters // groups, kernel.shape[2]
    # Filters that are wanted at the same positions are computed together.
    step = each if mask.shape[3] == 1 else 1
    macs = 0
    for start in range(0, filters, step):
        some = slice(start, start + step)
        first = start // each * channels
        wanted = np.nonzero(mask[..., 0 if mask.shape[3] == 1 else start])
        inputs = padded[..., first : first + channels]
        outputs[(*wanted, some)] = _at(inputs, kernel[..., some], wanted, axes)
        macs += len(wanted[0]) * kernel[..., some].size
    return outputs, macs


def _at(inputs, kernel, positions, axes):
    """The outputs at some positions: `(positions, filters)`."""
    sample, down, across = positions
    rows, columns = axes
    total = np.zeros((len(sample), kernel.shape[3]), "float32")
    for h in range(rows.kernel):
        for w in range(columns.kernel):
            read = inputs[
                sample,
                down * rows.stride + h * rows.dilation,
                across * columns.stride + w * columns.dilation,
            ]
            total += read @ kernel[h, w]
    return total


def _groups(x, kernel, owner):
    fits = x.ndim == 4 and kernel.ndim == 4 and x.shape[3] % max(1, kernel.shape[2]) == 0
    groups = x.shape[3] // kernel.shape[2] if fits else 0
    if not groups or kernel.shape[3] % groups:
        raise ValueError(
            f"{owner}: `x` must have the shape (batch, height, width, channels) and `kernel` "
            f"(height, width, channels / groups, filters); got {x.shape} and {kernel.shape}."
        )
    return groups
