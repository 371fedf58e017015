"""MEC: convolution by products with a matrix that is lowered along the width only.

The lowered input has `L[n, w, h] = I[n, h, s_w w : s_w w + k_w]`: `n o_w i_h k_w i_c` values, where
im2col has `n o_h o_w k_h k_w i_c`. The windows of output row `h` are columns `s_h h k_w i_c` and
the `k_h k_w i_c - 1` after it of the matrix `o_w x (i_h k_w i_c)`: matrices of neighbouring rows
overlap, and a BLAS takes them where they lie.
"""

import math

import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.ops.windows import axes_of

#: The layers cv1 to cv12 on which the paper measures: name -> (height, width and channels of the
#: input, height and width of the kernel, filters, stride). Nothing is padded.
PAPER_LAYERS = {
    "cv1": ((227, 227, 3), (11, 11), 96, 4),
    "cv2": ((231, 231, 3), (11, 11), 96, 4),
    "cv3": ((227, 227, 3), (7, 7), 64, 2),
    "cv4": ((224, 224, 64), (7, 7), 64, 2),
    "cv5": ((24, 24, 96), (5, 5), 256, 1),
    "cv6": ((12, 12, 256), (3, 3), 512, 1),
    "cv7": ((224, 224, 3), (3, 3), 64, 1),
    "cv8": ((112, 112, 64), (3, 3), 128, 1),
    "cv9": ((56, 56, 64), (3, 3), 64, 1),
    "cv10": ((28, 28, 128), (3, 3), 128, 1),
    "cv11": ((14, 14, 256), (3, 3), 256, 1),
    "cv12": ((7, 7, 512), (3, 3), 512, 1),
}


def mec_lowered_size(input_shape, kernel_size, strides=1, padding="valid", dilation_rate=1):
    """Number of values of the lowered input: `n o_w i_h k_w i_c`, with `i_h` padded.

    Args:
        input_shape: `(batch, height, width, channels)`.
        kernel_size: `(height, width)`.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        dilation_rate: Integer or pair.

    Example:

    >>> import keras_compress as kc
    >>> kc.ops.mec_lowered_size((1, 7, 7, 1), (3, 3)), kc.ops.im2col_size((1, 7, 7, 1), (3, 3))
    (105, 225)
    """
    rows, columns = axes_of(input_shape[1:3], kernel_size, strides, padding, dilation_rate)
    return input_shape[0] * columns.windows * rows.padded * columns.kernel * input_shape[3]


def im2col_size(input_shape, kernel_size, strides=1, padding="valid", dilation_rate=1):
    """Number of values that im2col makes: `n o_h o_w k_h k_w i_c`; see `mec_lowered_size`."""
    rows, columns = axes_of(input_shape[1:3], kernel_size, strides, padding, dilation_rate)
    windows = rows.windows * columns.windows
    return input_shape[0] * windows * math.prod(kernel_size) * input_shape[3]


def mec_conv2d(x, kernel, strides=1, padding="valid", dilation_rate=1):
    """2-D convolution with an input that is lowered along the width only.

    In `keras.ops`, differentiable, for any backend. A graph has no strided views: instead of one
    product for each output row this takes one for each kernel row, of the same entries of the same
    lowered input, and adds them up. Heights and widths may be open.

    Args:
        x: Tensor `(batch, height, width, channels)`.
        kernel: Tensor `(height, width, channels, filters)`.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        dilation_rate: Integer or pair.

    Returns:
        Tensor `(batch, new height, new width, filters)`, that of `keras.ops.conv`.

    Raises:
        ValueError: if an argument is out of range, or the kernel does not fit.

    Reference:
        Cho, Brand, "MEC: Memory-efficient Convolution for Deep Neural Network", 2017.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> y = kc.ops.mec_conv2d(np.ones((1, 5, 5, 2), "float32"), np.ones((3, 3, 2, 4), "float32"))
    >>> y.shape == (1, 3, 3, 4), float(y[0, 0, 0, 0])
    (True, 18.0)
    """
    owner = "mec_conv2d"
    x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
    _check(x.shape, kernel.shape, owner)
    # Where a size is open, so are the windows; tensors of sizes take its place.
    rows, columns = axes_of(ops.shape(x)[1:3], kernel.shape[:2], strides, padding, dilation_rate)
    if any(axis.padding == "same" for axis in (rows, columns)):
        x = ops.pad(x, ((0, 0), rows.pads, columns.pads, (0, 0)))
    lowered = ops.concatenate([x[:, :, columns.tap(w)] for w in range(columns.kernel)], axis=-1)
    matrices = ops.reshape(kernel, (rows.kernel, -1, kernel.shape[-1]))
    outputs = ops.matmul(lowered[:, rows.tap(0)], matrices[0])
    for h in range(1, rows.kernel):
        outputs = ops.add(outputs, ops.matmul(lowered[:, rows.tap(h)], matrices[h]))
    return outputs


def mec_conv2d_numpy(x, kernel, strides=1, padding="valid"):
    """`mec_conv2d` of numpy arrays: one product for each output row, on views of the lowered input.

    Args:
        x: Array `(batch, height, width, channels)`.
        kernel: Array `(height, width, channels, filters)`, of the same dtype.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.

    Returns:
        Array `(batch, new height, new width, filters)`.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> x, kernel = np.ones((1, 7, 7, 2)), np.ones((3, 3, 2, 4))
    >>> lowered = kc.ops.mec_lower(x, (3, 3))
    >>> matrices = kc.ops.mec_matrices(lowered, 3)
    >>> lowered.size, matrices.size, np.shares_memory(lowered, matrices)
    (210, 450, True)
    >>> np.array_equal(matrices @ kernel.reshape(18, 4), kc.ops.mec_conv2d_numpy(x, kernel))
    True
    """
    x, kernel = np.asarray(x), np.asarray(kernel)
    _check(x.shape, kernel.shape, "mec_conv2d_numpy")
    rows, _ = axes_of(x.shape[1:3], kernel.shape[:2], strides, padding, owner="mec_conv2d_numpy")
    lowered = mec_lower(x, kernel.shape[:2], strides, padding)
    matrices = mec_matrices(lowered, kernel.shape[0], rows.stride)
    # numpy hands each matrix to BLAS with the step between its rows: nothing is copied.
    return np.matmul(matrices, kernel.reshape(-1, kernel.shape[-1]))


def mec_lower(x, kernel_size, strides=1, padding="valid"):
    """The lowered input: an array `(batch, new width, padded height, kernel width, channels)`.

    Args:
        x: Array `(batch, height, width, channels)`.
        kernel_size: `(height, width)`.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
    """
    rows, columns = axes_of(x.shape[1:3], kernel_size, strides, padding, owner="mec_lower")
    shape = (len(x), columns.windows, rows.padded, columns.kernel, x.shape[3])
    lowered = (np.empty if padding == "valid" else np.zeros)(shape, x.dtype)
    inside = slice(rows.pads[0], rows.pads[0] + rows.length)
    for w in range(columns.kernel):
        windows, entries = columns.read(w)
        # No padded copy of the input: what is outside of it stays zero.
        lowered[:, windows, inside, w] = x[:, :, entries].transpose(0, 2, 1, 3)
    return lowered


def mec_matrices(lowered, kernel_height, stride=1):
    """The windows of each output row as a matrix: overlapping views of the lowered input.

    Args:
        lowered: What `mec_lower` gives.
        kernel_height: Integer.
        stride: Integer: that of the height.

    Returns:
        Array `(batch, new height, new width, kernel height * kernel width * channels)` that shares
        the memory of `lowered` and is read-only.
    """
    batch, width, height, taps, channels = lowered.shape
    if not lowered.flags.c_contiguous:
        raise ValueError("mec_matrices: `lowered` must lie in memory as mec_lower() gives it.")
    across, along, *_, item = lowered.strides[1:]
    return np.lib.stride_tricks.as_strided(
        lowered,
        (batch, (height - kernel_height) // stride + 1, width, kernel_height * taps * channels),
        (lowered.strides[0], stride * along, across, item),
        writeable=False,
    )


def _check(shape, kernel_shape, owner):
    if len(shape) != 4 or len(kernel_shape) != 4 or shape[3] != kernel_shape[2]:
        raise ValueError(
            f"{validation.prefix(owner)}`x` must have the shape (batch, height, width, channels) "
            "and `kernel` (height, width, channels, filters), with the same channels; got "
            f"{tuple(shape)} and {tuple(kernel_shape)}."
        )
