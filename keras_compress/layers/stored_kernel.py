"""How a .tflite stores one kernel: what `export_form()` hands to the exporter, as data.

A form says what the weights *are* (integers on a grid, codes of a codebook, buckets of a hash, few
nonzeros). Which tensors and operations that becomes is the exporter's business, so that no layer
knows flatbuffers and a new runtime needs no new layer.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Convolution:
    """Geometry of a 2-D convolution: the arguments of `keras.layers.Conv2D` that matter here."""

    strides: tuple = (1, 1)
    padding: str = "valid"
    dilation_rate: tuple = (1, 1)
    groups: int = 1
    data_format: str = "channels_last"


@dataclasses.dataclass(frozen=True, eq=False)
class GridKernel:
    """Integers times a scale: binary, ternary and all uniform grids.

    Attributes:
        ints: int8 array in Keras's layout, output channels last.
        scale: float32 scalar, or one entry for each output channel.
    """

    ints: np.ndarray
    scale: np.ndarray

    def __post_init__(self):
        ints = np.asarray(self.ints)
        if ints.size and (ints.min() < -128 or ints.max() > 127):
            raise ValueError(
                "GridKernel holds integers of 8 bits, -128 to 127; got "
                f"{ints.min()} to {ints.max()}. Use a coarser grid, or a CodebookKernel."
            )
        object.__setattr__(self, "ints", ints.astype(np.int8))
        object.__setattr__(self, "scale", np.asarray(self.scale, np.float32))

    @property
    def shape(self):
        """Shape of the kernel."""
        return self.ints.shape

    @property
    def bits(self):
        """Bits of a native LiteRT integer that holds every value: 2, 4 or 8, or `None`.

        LiteRT's own kernels (those without XNNPACK) miscompute -8 in int4 and -128 in int8.
        """
        low, high = int(self.ints.min()), int(self.ints.max())
        limits = {2: (-2, 1), 4: (-7, 7), 8: (-127, 127)}
        return next((bits for bits, (a, b) in limits.items() if a <= low and high <= b), None)

    def dense(self):
        """The float32 kernel."""
        return self.ints * self.scale


@dataclasses.dataclass(frozen=True, eq=False)
class CodebookKernel:
    """Codes of a codebook whose values lie on no grid.

    Attributes:
        codes: uint8 array in Keras's layout.
        values: float32 vector of at most 256 entries, indexed by `codes`.
    """

    codes: np.ndarray
    values: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "codes", np.asarray(self.codes, np.uint8))
        object.__setattr__(self, "values", np.asarray(self.values, np.float32))

    @property
    def shape(self):
        """Shape of the kernel."""
        return self.codes.shape

    def dense(self):
        """The float32 kernel."""
        return self.values[self.codes]


@dataclasses.dataclass(frozen=True, eq=False)
class VectorCodebookKernel:
    """Codes of vectors: see `kc.sharing.Codebook`.

    Attributes:
        codes: uint8 or uint16 array `(stages, ..., segments, outputs)`.
        centres: float32 array `(stages, books, k, length)`.
    """

    codes: np.ndarray
    centres: np.ndarray

    @property
    def shape(self):
        """Shape of the kernel."""
        return self._codebook().shape

    def dense(self):
        """The float32 kernel."""
        return self._codebook().decode()

    def _codebook(self):
        from keras_compress.sharing.codebook import Codebook

        return Codebook(self.codes, self.centres)


@dataclasses.dataclass(frozen=True, eq=False)
class HashedKernel:
    """Values shared by a hash: see `kc.layers.HashedDense`.

    Attributes:
        values: float32 vector, one value a bucket.
        seed: Seed of the hash.
        shape: Shape of the kernel, in Keras's layout.
    """

    values: np.ndarray
    seed: int
    shape: tuple

    def dense(self):
        """The float32 kernel."""
        from keras_compress.sharing.hashing import expand_values

        return expand_values(np.asarray(self.values, np.float32), self.shape, self.seed)


@dataclasses.dataclass(frozen=True, eq=False)
class SparseKernel:
    """A float kernel most of whose entries are zero.

    Attributes:
        kernel: float32 or float16 array in Keras's layout, stored in that precision.
    """

    kernel: np.ndarray

    @property
    def shape(self):
        """Shape of the kernel."""
        return self.kernel.shape

    @property
    def density(self):
        """Share of entries that are not zero."""
        return float(np.count_nonzero(self.kernel) / max(1, math.prod(self.shape)))

    def dense(self):
        """The float32 kernel."""
        return np.asarray(self.kernel, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class BlockSparseKernel:
    """A float matrix most of whose blocks are zero.

    Attributes:
        kernel: float32 or float16 array `(inputs, outputs)`, stored in that precision.
        block: `(height, width)` of a block; both divide the kernel's sides.
    """

    kernel: np.ndarray
    block: tuple

    @property
    def shape(self):
        """Shape of the kernel."""
        return self.kernel.shape

    @property
    def occupied(self):
        """Which blocks hold anything: bool array `(block rows, block columns)`."""
        return occupied_blocks(self.kernel != 0, self.block)

    def blocks(self):
        """The kernel as an array `(block rows, block columns, height, width)`."""
        (rows, columns), (height, width) = self.shape, self.block
        split = self.kernel.reshape(rows // height, height, columns // width, width)
        return split.transpose(0, 2, 1, 3)

    def dense(self):
        """The float32 kernel."""
        return np.asarray(self.kernel, np.float32)


#: Sides of the blocks of a `BlockSparseKernel`: a smaller one leaves vector units idle.
BLOCK_SIDES = (16, 32, 64, 128)


def occupied_blocks(occupied, block):
    """Coarsens a bool matrix: which blocks have any entry that is true."""
    (rows, columns), (height, width) = occupied.shape, block
    return occupied.reshape(rows // height, height, columns // width, width).any((1, 3))


def block_of(kernel):
    """The block in which the zeros of a matrix are best left out.

    Args:
        kernel: Array `(inputs, outputs)`.

    Returns:
        `(height, width)`: the block that leaves out the most zeros, the largest of equals, or
        `None` if the smallest block does not divide the matrix or no block is zero.

    Example:

    >>> block_of(np.kron(np.eye(4), np.ones((32, 64))))
    (32, 64)
    """
    smallest = BLOCK_SIDES[0]
    if any(length % smallest for length in kernel.shape):
        return None
    fine = occupied_blocks(kernel != 0, (smallest, smallest))
    best, best_kept = None, kernel.size
    for height in BLOCK_SIDES:
        for width in BLOCK_SIDES:
            if kernel.shape[0] % height or kernel.shape[1] % width:
                continue
            factors = (height // smallest, width // smallest)
            kept = int(occupied_blocks(fine, factors).sum()) * height * width
            larger = best is not None and height * width > best[0] * best[1]
            if kept < best_kept or (kept == best_kept and larger):
                best, best_kept = (height, width), kept
    return best


def grid_of(values, limit=127):
    """The coarsest grid that values lie on exactly, if there is one.

    Args:
        values: 1-D float array.
        limit: Largest magnitude of the integers.

    Returns:
        `(ints, step)` with `values == ints * step` to float32 rounding, or `None`.

    Example:

    >>> ints, step = grid_of([-0.5, 0.0, 1.5])
    >>> ints.tolist(), float(step)
    ([-1, 0, 3], 0.5)
    """
    values = np.asarray(values, "float64")
    magnitudes = np.unique(np.abs(values[values != 0]))
    if len(magnitudes) == 0:
        return np.zeros(values.shape, np.int8), np.float32(1.0)
    largest = magnitudes[-1]
    for count in range(1, limit + 1):
        step = largest / count
        ints = np.round(magnitudes / step)
        if np.all(np.abs(ints * step - magnitudes) <= 2e-6 * largest) and ints[0] > 0:
            return np.round(values / step).astype(np.int8), np.float32(step)
    return None
