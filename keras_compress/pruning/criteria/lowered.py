"""Kernels as matrices, and the inputs that those matrices are multiplied with (im2col)."""

import math

import keras
import numpy as np

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_ENTRIES = 2**23


class LoweredKernel:
    """A dense or convolution kernel as the matrices of the products that its layer takes.

    A dense layer is one product `rows x kernel`; a convolution is one for each of its groups, of
    the patches of the input; a depthwise one is one for each input channel.

    Args:
        kernel: `PrunableKernel` of a Dense layer or a convolution, also inside a TimeDistributed.
        calls: The calls of the model's graph.
        owner: Object or name that error messages begin with.

    Attributes:
        inputs: The `Value`s of the graph that the layer reads, one for each of its calls.
        outputs: The `Value`s that it gives.

    Raises:
        ValueError: if the layer is another one.
    """

    def __init__(self, kernel, calls, owner):
        self.layer, self.shape = kernel.layer, tuple(kernel.variable.shape)
        self._distributed = len(kernel.chain) > 1 and isinstance(
            kernel.chain[-2], keras.layers.TimeDistributed
        )
        called = kernel.chain[-2] if self._distributed else self.layer
        own = [call for call in calls if call.operation is called]
        known = isinstance(self.layer, (keras.layers.Dense, *_CONVOLUTIONS, *_DEPTHWISE))
        if not known or not own:
            name = type(owner).__name__ if not isinstance(owner, str) else owner
            raise ValueError(
                f"{name}: '{kernel.name}' is no kernel of a Dense layer or a convolution in the "
                "model's graph: there is no product of it with an input to look at. Leave it out "
                "by `layers=`."
            )
        self.inputs = [call.inputs[0] for call in own]
        self.outputs = [call.output for call in own]

    @property
    def groups(self):
        """Number of products."""
        if isinstance(self.layer, keras.layers.Dense):
            return 1
        if isinstance(self.layer, _DEPTHWISE):
            return self.shape[-2]
        return self.layer.groups

    def to_matrices(self, kernel):
        """An array of the kernel's shape as `(groups, inputs, outputs)`."""
        groups = self.groups
        if isinstance(self.layer, _DEPTHWISE):
            return kernel.reshape(-1, *self.shape[-2:]).transpose(1, 0, 2)
        return kernel.reshape(-1, groups, self.shape[-1] // groups).transpose(1, 0, 2)

    def from_matrices(self, matrices):
        """The way back of `to_matrices`."""
        return np.ascontiguousarray(matrices.transpose(1, 0, 2)).reshape(self.shape)

    def rows(self, tensor):
        """The rows that the matrices are multiplied with.

        Args:
            tensor: numpy array: an input of the layer.

        Yields:
            Arrays `(groups, rows, inputs)`, float64, of a few samples each.
        """
        for patches in self.patches(tensor):
            yield patches.reshape(len(patches), -1, patches.shape[-1])

    def patches(self, tensor):
        """As `rows`, with the positions apart: `(groups, samples, positions, inputs)`."""
        tensor = self._undistributed(tensor)
        if isinstance(self.layer, keras.layers.Dense):
            # The axes between are positions.
            yield tensor.reshape(1, len(tensor), -1, tensor.shape[-1]).astype("float64")
            return
        windows, rank = self._windows(tensor)
        each = max(1, _ENTRIES // max(1, math.prod(windows.shape[1:])))
        for start in range(0, len(windows), each):
            yield self._grouped(windows[start : start + each], rank)

    def rows_at(self, tensor, choose):
        """As `rows`, at chosen positions; no other patch is made.

        Args:
            tensor: numpy array: an input of the layer.
            choose: Function `(samples, positions) -> array of integers (samples, number)`.

        Returns:
            float64 array `(groups, samples * number, inputs)`.
        """
        tensor = self._undistributed(tensor)
        if isinstance(self.layer, keras.layers.Dense):
            tensor = tensor.reshape(len(tensor), -1, tensor.shape[-1])
            places = choose(*tensor.shape[:2])
            rows = np.take_along_axis(tensor, places[..., None], 1)
            return rows.reshape(1, -1, rows.shape[-1]).astype("float64")
        windows, rank = self._windows(tensor)
        lengths = windows.shape[1 : rank + 1]
        places = np.unravel_index(choose(len(windows), math.prod(lengths)), lengths)
        patches = self._grouped(windows[(np.arange(len(windows))[:, None], *places)], 1)
        return patches.reshape(len(patches), -1, patches.shape[-1])

    def responses(self, tensor):
        """What the matrices' outputs became: `(groups, samples, positions, outputs)`.

        Args:
            tensor: numpy array of the shape of the layer's output.
        """
        tensor = self._undistributed(tensor)
        first = getattr(self.layer, "data_format", None) == "channels_first"
        if first and not isinstance(self.layer, keras.layers.Dense):
            tensor = np.moveaxis(tensor, 1, -1)
        split = tensor.reshape(len(tensor), -1, self.groups, tensor.shape[-1] // self.groups)
        return np.moveaxis(split, 2, 0).astype("float64")

    def _undistributed(self, tensor):
        return tensor.reshape(-1, *tensor.shape[2:]) if self._distributed else tensor

    def _windows(self, tensor):
        """A view `(samples, *positions, *taps, channels)` of an input, and the number of axes."""
        if self.layer.data_format == "channels_first":
            tensor = np.moveaxis(tensor, 1, -1)
        rank = tensor.ndim - 2
        sizes, strides, dilations = self.shape[:rank], self._strides(rank), self._dilations(rank)
        spans = [(size - 1) * rate + 1 for size, rate in zip(sizes, dilations, strict=True)]
        padding = [
            _padding(self.layer.padding, *lengths)
            for lengths in zip(tensor.shape[1:-1], spans, strides, strict=True)
        ]
        tensor = np.pad(tensor, [(0, 0), *padding, (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(
            tensor, spans, axis=tuple(range(1, rank + 1))
        )
        windows = windows[(slice(None), *(slice(None, None, s) for s in strides))]
        windows = windows[(..., *(slice(None, None, rate) for rate in dilations))]
        # (samples, positions..., channels, taps...): channels go last.
        return np.moveaxis(windows, rank + 1, -1), rank

    def _grouped(self, windows, rank):
        samples, channels = len(windows), windows.shape[-1]
        positions = math.prod(windows.shape[1 : rank + 1])
        taps = math.prod(windows.shape[rank + 1 : -1])
        each = channels // self.groups
        split = windows.astype("float64").reshape(samples, positions, taps, self.groups, each)
        return np.moveaxis(split, 3, 0).reshape(self.groups, samples, positions, taps * each)

    def _strides(self, rank):
        return _tuple(self.layer.strides, rank)

    def _dilations(self, rank):
        return _tuple(self.layer.dilation_rate, rank)


def second_moments(observer, lowered, samples):
    """`X^T X / rows` of the inputs of several kernels, from one pass over the data.

    Args:
        observer: `Observer` of the inputs of all kernels, in order.
        lowered: List of `LoweredKernel`.
        samples: `Samples`.

    Returns:
        List of float64 arrays `(groups, inputs, inputs)`.
    """
    sums, counts = [0.0] * len(lowered), [0] * len(lowered)
    for inputs, _ in samples:
        tensors = iter(observer.activations(inputs))
        for index, kernel in enumerate(lowered):
            for _ in kernel.inputs:
                for rows in kernel.rows(next(tensors)):
                    sums[index] = sums[index] + rows.transpose(0, 2, 1) @ rows
                    counts[index] += rows.shape[1]
    return [total / count for total, count in zip(sums, counts, strict=True)]


def _padding(padding, length, span, stride):
    if padding == "valid":
        return (0, 0)
    if padding == "causal":
        return (span - 1, 0)
    total = max(0, (-(-length // stride) - 1) * stride + span - length)
    return (total // 2, total - total // 2)


def _tuple(value, rank):
    return (value,) * rank if isinstance(value, int) else tuple(value)
