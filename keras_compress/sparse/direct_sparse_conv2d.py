"""`DirectSparseConv2D`: a pruned convolution on CPU, without im2col."""

import keras
import numpy as np
import scipy.sparse

from keras_compress.ops.windows import axes_of
from keras_compress.sparse.sparse_op import SparseOp

#: Weights of one product: output rows are taken together until there are as many.
_WEIGHTS = 2**14


class DirectSparseConv2D(SparseOp):
    """Runs a pruned convolution by adding shifted rows of its input, on CPU: inference only.

    Of each weight that is not zero, its product with a row of the padded input is added to a row of
    outputs: `nonzeros * output height * output width` multiply-accumulates and no im2col. The
    kernel is CSR, its column indices are offsets of rows in the padded input. Rows lie in memory as
    `(height, channel, kernel width, width, batch)`, one for each tap along the width, so that all
    windows of an output row are one piece of it (MEC's matrices, which overlap): a product of CSR
    and dense in scipy takes them where they lie.

    Args:
        layer: A built `keras.layers.Conv2D`: any stride, dilation, padding, groups and
            `data_format`.

    Raises:
        ValueError: if the layer is another one, or not built.

    Reference:
        Park, Li, Wen, Tang, Li, Chen, Dubey, "Faster CNNs with Direct Sparse Convolutions and
        Guided Pruning", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> layer = keras.layers.Conv2D(4, 3, padding="same")
    >>> layer.build((None, 8, 8, 2))
    >>> kernel = np.zeros((3, 3, 2, 4), "float32")
    >>> kernel[1, 1] = 1
    >>> _ = layer.kernel.assign(kernel)
    >>> op = kc.sparse.DirectSparseConv2D(layer)
    >>> op.nonzeros, op.macs((1, 8, 8, 2)), float(op(np.ones((1, 8, 8, 2)))[0, 0, 0, 0])
    (8, 512, 2.0)
    """

    source = keras.layers.Conv2D

    def compressed(self, layer, kernel):
        self.kernel_size, self.strides = tuple(layer.kernel_size), tuple(layer.strides)
        self.dilation_rate, self.padding = tuple(layer.dilation_rate), layer.padding
        self.channels_first = layer.data_format == "channels_first"
        _, _, each, self.filters = kernel.shape
        self.channels = each * layer.groups
        h, w, c, f = np.nonzero(kernel)
        values = kernel[h, w, c, f]
        c = c + f // (self.filters // layer.groups) * each
        # Offsets of rows: of a row of the image there is one for each channel and tap.
        per_row = self.channels * self.kernel_size[1]
        offsets = h * self.dilation_rate[0] * per_row + c * self.kernel_size[1] + w
        span = (self.kernel_size[0] - 1) * self.dilation_rate[0] + 1
        self._stacks = {}
        return scipy.sparse.csr_array((values, (f, offsets)), (self.filters, span * per_row))

    def axes(self, size):
        """The windows along the height and the width of an input of this `(height, width)`."""
        geometry = (self.kernel_size, self.strides, self.padding, self.dilation_rate)
        return axes_of(size, *geometry, owner=self)

    def macs(self, input_shape):
        """Multiply-accumulates of one sample: nonzeros times output positions.

        Args:
            input_shape: `(batch, height, width, channels)`, or channels first.
        """
        size = input_shape[2:] if self.channels_first else input_shape[1:3]
        rows, columns = self.axes(size)
        return self.nonzeros * rows.windows * columns.windows

    def __call__(self, x):
        """Outputs for a batch of images, in the layer's `data_format`."""
        axis = 1 if self.channels_first else -1
        x = self.check_input(x, 4, axis, self.channels)
        order = (2, 1, 3, 0) if self.channels_first else (1, 3, 2, 0)
        outputs = self.run(np.ascontiguousarray(x.transpose(order)))
        return np.ascontiguousarray(outputs.transpose(np.argsort(order)))

    def run(self, x):
        """Outputs `(height, filters, width, batch)` for an input of that order of axes."""
        height, channels, width, batch = x.shape
        rows, columns = self.axes((height, width))
        lowered = self._lower(x, rows, columns)
        length = columns.windows * batch
        flat = lowered.reshape(-1, length)
        per_row = channels * self.kernel_size[1]
        outputs = np.empty((rows.windows, self.filters, length), "float32")
        together = max(1, min(rows.windows, _WEIGHTS // max(1, self.nonzeros)))
        for start in range(0, rows.windows, together):
            count = min(together, rows.windows - start)
            stack = self._stack(count)
            first = start * rows.stride * per_row
            product = stack @ flat[first : first + stack.shape[1]]
            outputs[start : start + count] = product.reshape(count, self.filters, length)
        outputs = outputs.reshape(rows.windows, self.filters, columns.windows, batch)
        to_keras = (3, 1, 0, 2) if self.channels_first else (3, 0, 2, 1)
        return self.finish(outputs, 1, to_keras, tuple(np.argsort(to_keras)))

    def _lower(self, x, rows, columns):
        """The padded input, with a copy of each row for each tap along the width."""
        height, channels, width, batch = x.shape
        if self.padding == "valid" and columns.kernel == 1 and columns.stride == 1:
            return x
        shape = (rows.padded, channels, columns.kernel, columns.windows, batch)
        padded = any((*rows.pads, *columns.pads))
        lowered = (np.zeros if padded else np.empty)(shape, "float32")
        inside = slice(rows.pads[0], rows.pads[0] + height)
        for tap in range(columns.kernel):
            windows, entries = columns.read(tap)
            lowered[inside, :, tap, windows] = x[:, :, entries]
        return lowered

    def _stack(self, count):
        """The kernel for `count` neighbouring output rows, each with the offset of its own."""
        if count not in self._stacks:
            one = self.weights
            shift = self.strides[0] * self.channels * self.kernel_size[1]
            indices = np.concatenate([one.indices + k * shift for k in range(count)])
            starts = [one.indptr[:-1] + k * one.nnz for k in range(count)]
            indptr = np.concatenate([*starts, [count * one.nnz]])
            shape = (count * self.filters, one.shape[1] + (count - 1) * shift)
            data = np.tile(one.data, count)
            dtype = "int32" if max(shape[1], len(data)) < 2**31 else "int64"
            self._stacks[count] = scipy.sparse.csr_array(
                (data, indices.astype(dtype), indptr.astype(dtype)), shape
            )
        return self._stacks[count]
