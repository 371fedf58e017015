"""BlockSparseDense: a dense layer of which only some blocks of the kernel exist."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.layers.base import dtype_bits, initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.stored_kernel import BlockSparseKernel
from keras_compress.layers.stored_layers import StoredDense
from keras_compress.pruning.block_masks import check_block_size, kept_blocks, random_scores
from keras_compress.pruning.masks import drop_count, group_scores


@keras.saving.register_keras_serializable(package="keras_compress")
class BlockSparseDense(CompressedDense):
    """Dense layer that stores and runs the kept blocks of its kernel: coarse-grain sparsification.

    The kernel is cut into blocks, of which each block of outputs keeps the same number. A product
    gathers the blocks of the input that each block of outputs reads, and multiplies them with the
    stored blocks, as one batch of small matrix products.

    What it buys: a .tflite of `density` times the kernel's bytes and about as much of its latency,
    by GATHER and BATCH_MATMUL, in blocks of 16 or more. Sizes that the block does not divide are
    padded.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        block_size: `(rows, columns)` of a block of the kernel (inputs, outputs), or the side of a
            square one.
        density: Share of the blocks that is kept, in (0, 1]; of each block of outputs at least one
            is.
        seed: Integer seed of the choice of the blocks; `from_layer` chooses by magnitude.
        kernel_initializer: Spread of the weights, as if all blocks were there; with fewer inputs to
            an output, it is widened by `1 / sqrt(density)`.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on the blocks, of shape
            `(block columns, kept blocks, block rows, columns of a block)`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `block_size`, `density` or `seed` is out of range.

    Reference:
        D. Kadetotad, S. Arunachalam, C. Chakrabarti, J. Seo, "Efficient Memory Compression in Deep
        Neural Networks Using Coarse-grain Sparsification for Speech Applications", 2016.

    Example:

    >>> layer = BlockSparseDense(256, block_size=64, density=0.25, use_bias=False)
    >>> layer.build((None, 512))
    >>> layer.macs() / (512 * 256)
    0.25
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        block_size=(64, 64),
        density=0.25,
        seed=0,
        **kwargs,
    ):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        self.block_size = check_block_size(block_size, self)
        self.density = _check_density(density, self)
        self.seed = validation.seed(seed, self)

    def build_kernel(self, input_channels):
        shape = self._rows, columns = _block_counts(input_channels, self.units, self.block_size)
        self._kept = self._rows - drop_count(self._rows, 1 - self.density)
        places = _places(kept_blocks(random_scores(shape, self.seed), 1 - self.density))
        stddev = initializer_stddev(self.kernel_initializer, input_channels, self.units)
        stddev *= math.sqrt(self._rows / self._kept)
        self.blocks = self.add_kernel_weight(
            "blocks", (columns, self._kept, *self.block_size), self.normal_initializer(stddev)
        )
        self.places = self.add_kernel_weight(
            "places",
            (columns, self._kept),
            lambda shape, dtype=None: ops.convert_to_tensor(places, dtype),
            dtype="int32",
            trainable=False,
        )

    def apply_kernel(self, inputs):
        height, width = self.block_size
        columns = self.blocks.shape[0]
        rows = ops.reshape(inputs, (-1, self.input_channels))
        padding = self._rows * height - self.input_channels
        if padding:
            rows = ops.pad(rows, ((0, 0), (0, padding)))
        rows = ops.reshape(rows, (-1, self._rows, height))
        read = ops.take(rows, ops.reshape(ops.convert_to_tensor(self.places), (-1,)), axis=1)
        read = ops.reshape(read, (-1, columns, self._kept * height))
        kernel = ops.reshape(ops.convert_to_tensor(self.blocks), (columns, -1, width))
        outputs = ops.matmul(ops.transpose(read, (1, 0, 2)), kernel)
        outputs = ops.reshape(ops.transpose(outputs, (1, 0, 2)), (-1, columns * width))
        if columns * width > self.units:
            outputs = outputs[:, : self.units]
        if len(inputs.shape) == 2:
            return outputs
        return ops.reshape(outputs, (-1, *ops.shape(inputs)[1:-1], self.units))

    def reconstruct_kernel(self):
        blocks, places = map(ops.convert_to_numpy, (self.blocks, self.places))
        columns, height, width = blocks.shape[0], *self.block_size
        whole = np.zeros((self._rows, columns, height, width), "float32")
        whole[places, np.arange(columns)[:, None]] = blocks
        matrix = whole.transpose(0, 2, 1, 3).reshape(self._rows * height, columns * width)
        return matrix[: self.input_channels, : self.units]

    def kernel_macs(self):
        return math.prod(self.blocks.shape)

    def kernel_bits(self):
        """The blocks, and the number of its row for each of them."""
        index = math.ceil(math.log2(self._rows))
        return math.prod(self.blocks.shape) * dtype_bits(self.blocks.dtype) + (
            math.prod(self.places.shape) * index
        )

    def export_form(self):
        """The kept blocks as a `BlockSparseKernel`; where they are padded, the layer as it is."""
        self.check_built("export_form")
        height, width = self.block_size
        if self.input_channels % height or self.units % width:
            return self
        return StoredDense.of(self, BlockSparseKernel(self.reconstruct_kernel(), self.block_size))

    @classmethod
    def fit_kernel(cls, kernel, *, block_size=(64, 64), density=0.25, seed=0):
        """Keeps, of each block of outputs, the blocks with the largest mean magnitude.

        Args:
            kernel: Array `(input_dim, units)`.
            block_size: As for the layer.
            density: As for the layer.
            seed: As for the layer; nothing is drawn here.
        """
        height, width = block_size = check_block_size(block_size, cls.__name__)
        density = _check_density(density, cls.__name__)
        rows, columns = _block_counts(*kernel.shape, block_size)
        scores, _, _ = group_scores(np.abs(kernel), "block", block_size)
        places = _places(kept_blocks(scores, 1 - density))
        whole = np.zeros((rows * height, columns * width), kernel.dtype)
        whole[: kernel.shape[0], : kernel.shape[1]] = kernel
        whole = whole.reshape(rows, height, columns, width).transpose(0, 2, 1, 3)
        arguments = {"block_size": block_size, "density": density, "seed": seed}
        return arguments, [whole[places, np.arange(columns)[:, None]], places]

    def get_config(self):
        return {
            **super().get_config(),
            "block_size": self.block_size,
            "density": self.density,
            "seed": self.seed,
        }


def _check_density(density, owner):
    return validation.number("density", density, 0, 1, low_open=True, owner=owner)


def _block_counts(inputs, outputs, block_size):
    return -(-inputs // block_size[0]), -(-outputs // block_size[1])


def _places(kept):
    """Rows of the kept blocks of each column, `(columns, kept)`."""
    return np.nonzero(kept.T)[1].reshape(kept.shape[1], -1).astype("int32")
