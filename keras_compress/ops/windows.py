"""Where the windows of a 2-D convolution lie in its input."""

import dataclasses

from keras import ops

from keras_compress import validation


@dataclasses.dataclass(frozen=True)
class Axis:
    """The windows along one axis.

    Attributes:
        length: Of the input; a tensor where it is open.
        kernel: Taps of the kernel.
        stride: From a window to the next.
        dilation: From a tap to the next.
        padding: `"valid"` or `"same"`.
    """

    length: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    padding: str = "valid"

    @property
    def span(self):
        """Entries from the first to the last that a window covers."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def pads(self):
        """Zeros before and after the input."""
        if self.padding == "valid":
            return (0, 0)
        last = (-(-self.length // self.stride) - 1) * self.stride
        total = _not_negative(last + self.span - self.length)
        return (total // 2, total - total // 2)

    @property
    def padded(self):
        """Length of the padded input."""
        return self.length + sum(self.pads)

    @property
    def windows(self):
        """Number of windows."""
        return _not_negative((self.padded - self.span) // self.stride + 1)

    def tap(self, index):
        """The entries of the padded input that the windows multiply with a tap: a slice."""
        start = index * self.dilation
        return slice(start, start + (self.windows - 1) * self.stride + 1, self.stride)

    def read(self, index):
        """The windows whose tap lies inside of the input, and the entries that it lies on.

        Returns:
            `(windows, entries)`: slices of the output and of the input without padding.
        """
        offset = index * self.dilation - self.pads[0]
        first = max(0, -(offset // self.stride))
        last = min(self.windows - 1, (self.length - 1 - offset) // self.stride)
        count = max(0, last - first + 1)
        start = max(0, first * self.stride + offset)
        return (
            slice(first, first + count),
            slice(start, start + max(0, count - 1) * self.stride + min(count, 1), self.stride),
        )


def axes_of(size, kernel_size, strides=1, padding="valid", dilation_rate=1, owner=None):
    """The windows along the height and the width of an image.

    Args:
        size: `(height, width)` of the input.
        kernel_size: `(height, width)` of the kernel.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        dilation_rate: Integer or pair.
        owner: Object or name that error messages begin with.

    Returns:
        Two `Axis`.

    Raises:
        ValueError: if an argument is out of range, or the kernel larger than the padded input.
    """
    strides = _pair("strides", strides, owner)
    dilations = _pair("dilation_rate", dilation_rate, owner)
    validation.one_of("padding", padding, ("valid", "same"), owner)
    rows, columns = (
        Axis(*lengths, padding)
        for lengths in zip(size, kernel_size, strides, dilations, strict=True)
    )
    if any(isinstance(axis.windows, int) and not axis.windows for axis in (rows, columns)):
        raise ValueError(
            f"{validation.prefix(owner)}a kernel of {tuple(kernel_size)} with dilation_rate="
            f"{dilations} does not fit into an input of {tuple(size)}; set padding='same', or give "
            "a larger input."
        )
    return rows, columns


def _not_negative(value):
    return max(0, value) if isinstance(value, int) else ops.maximum(value, 0)


def _pair(name, value, owner):
    values = validation.positive_ints(
        name, value if hasattr(value, "__iter__") else (value, value), owner
    )
    if len(values) != 2:
        raise ValueError(
            f"{validation.prefix(owner)}`{name}` must be an integer or a pair of integers; got "
            f"{name}={value!r}."
        )
    return values
