"""CirculantDense: a dense layer whose kernel is made of circulant blocks."""

import random

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.decomposition import circulant
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense


@keras.saving.register_keras_serializable(package="keras_compress")
class CirculantDense(CompressedDense):
    """Dense layer whose kernel consists of circulant blocks: `activation(x D C^T + bias)`.

    `C` is cut into blocks of `block_size x block_size`, each a circulant given by its first column;
    `D` is a fixed diagonal of random signs. The kernel has `input_dim * units / block_size` free
    weights and is never formed: blocks are multiplied by DFT. Sizes that are not multiples of the
    block are padded (inputs with zeros, outputs cut).

    What it buys: a .tflite that stores the spectra of the blocks and small DFT matrices, run as
    FULLY_CONNECTED and BATCH_MATMUL, or, where the DFT matrices would be larger than the spectra,
    as a DFT in two stages of FULLY_CONNECTED and element-wise products (a kernel that is smaller
    than all these is stored as it is). See `benchmarks/README.md`. A one-dimensional convolution
    would need no more than the free weights, but is several times slower than the dense layer.
    `quantize="int8"` rounds after each stage of the transforms, which costs more accuracy than in a
    dense layer: look at `max_error`; `"float16"` costs little.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        block_size: Size of the blocks, 2 or more. `None`: one circulant for the whole kernel, of
            size `max(input_dim, units)`.
        random_signs: Whether inputs are multiplied by random signs, drawn once. Nothing is stored
            for them but the seed.
        seed: Integer seed of the signs. `None`: drawn at construction (see
            `keras.utils.set_random_seed`), and then part of the configuration.
        kernel_initializer: Spread of the kernel. The free weights are normal with that spread.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on the free weights, of shape
            `(ceil(input_dim / block_size), ceil(units / block_size), block_size)`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `block_size` is not an integer from 2 to `max(input_dim, units)`, or `seed`
            not an integer from 0 to `2**32 - 1`.

    Reference:
        Cheng, Yu, Feris, Kumar, Choudhary, Chang, "An Exploration of Parameter Redundancy in Deep
        Networks with Circulant Projections", 2015.

    Example:

    >>> layer = CirculantDense(1024, block_size=64, use_bias=False)
    >>> layer.build((None, 1024))
    >>> layer.count_params()
    16384
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        block_size=None,
        random_signs=True,
        seed=None,
        **kwargs,
    ):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        self.block_size = _check_block_size(block_size)
        self.random_signs = bool(random_signs)
        self.seed = _resolve_seed(seed)

    def build_kernel(self, input_channels):
        self.block_size = _resolve_block_size(self.block_size, input_channels, self.units)
        self._blocks = circulant.block_counts(input_channels, self.units, self.block_size)
        self._signs = _signs(self.seed, input_channels) if self.random_signs else None
        stddev = initializer_stddev(self.kernel_initializer, input_channels, self.units)
        self.circulants = self.add_kernel_weight(
            "circulants", (*self._blocks, self.block_size), self.normal_initializer(stddev)
        )

    def apply_kernel(self, inputs):
        vectors = ops.convert_to_tensor(self.circulants)
        return self.apply_blocks(inputs, lambda x: circulant.circulant_matmul(x, vectors))

    def apply_blocks(self, inputs, matmul):
        """Signs, padding and cutting around `matmul`: `(rows, p b)` to `(rows, q b)`."""
        if self._signs is not None:
            inputs = inputs * ops.convert_to_tensor(self._signs, inputs.dtype)
        rows = ops.reshape(inputs, (-1, self.input_channels))
        padding = self._blocks[0] * self.block_size - self.input_channels
        if padding:
            rows = ops.pad(rows, ((0, 0), (0, padding)))
        outputs = matmul(rows)
        if outputs.shape[-1] > self.units:
            outputs = outputs[:, : self.units]
        if len(inputs.shape) == 2:
            return outputs
        return ops.reshape(outputs, (-1, *ops.shape(inputs)[1:-1], self.units))

    def reconstruct_kernel(self):
        vectors = ops.convert_to_numpy(self.circulants)
        kernel = circulant.circulant_to_matrix(vectors, self.input_channels, self.units)
        return kernel if self._signs is None else self._signs[:, None] * kernel

    def kernel_macs(self):
        """Those of the exported form."""
        form = self._inference_form()
        return self.input_channels * self.units if form is None else form.macs()

    def export_form(self):
        """The product with spectra that are stored, not computed from the free weights.

        A kernel that is smaller than its spectra and DFT matrices together is stored as it is.
        """
        self.check_built("export_form")
        form = self._inference_form()
        return self.expand() if form is None else _SpectralDense(self, form)

    def _inference_form(self):
        form = circulant.inference_form(*self._blocks, self.block_size)
        return form if form.stored() < self.input_channels * self.units else None

    @classmethod
    def fit_kernel(cls, kernel, *, block_size=None, random_signs=True, seed=None):
        """Fits the blocks in the least-squares sense: means along their wrapped diagonals.

        Args:
            kernel: Array `(input_dim, units)`.
            block_size: As for the layer.
            random_signs: As for the layer.
            seed: As for the layer.
        """
        block_size = _resolve_block_size(_check_block_size(block_size), *kernel.shape)
        seed = _resolve_seed(seed)
        if random_signs:
            kernel = _signs(seed, kernel.shape[0])[:, None] * kernel
        arguments = {"block_size": block_size, "random_signs": random_signs, "seed": seed}
        return arguments, [circulant.fit_circulant(kernel, block_size)]

    def get_config(self):
        return {
            **super().get_config(),
            "block_size": self.block_size,
            "random_signs": self.random_signs,
            "seed": self.seed,
        }


class _SpectralDense(keras.layers.Layer):
    """What a .tflite stores in place of a `CirculantDense`: its spectra and the DFT matrices.

    Args:
        layer: A built `CirculantDense`, which gives everything but the product of the blocks.
        form: The form of that product: see `circulant.inference_form`.
    """

    def __init__(self, layer, form):
        super().__init__(name=layer.name, dtype=layer.dtype_policy, trainable=False)
        self.supports_masking = True
        self.layer = layer
        self.form = form
        self.constants = {}
        for name, value in form.constants(ops.convert_to_numpy(layer.circulants)).items():
            self.constants[name] = self.add_weight(name=name, shape=value.shape)
            self.constants[name].assign(value)
        self.built = True

    def call(self, inputs):
        constants = {name: ops.convert_to_tensor(w) for name, w in self.constants.items()}
        outputs = self.layer.apply_blocks(inputs, lambda x: self.form.matmul(x, constants))
        return self.layer.add_bias_and_activate(outputs)


def _check_block_size(block_size):
    if block_size is None:
        return None
    block_size = validation.positive_int("block_size", block_size, "CirculantDense")
    if block_size < 2:
        raise ValueError(
            "CirculantDense: `block_size` must be 2 or more; got block_size=1, which is a dense "
            "kernel. Use keras.layers.Dense, or None for one circulant."
        )
    return block_size


def _resolve_block_size(block_size, input_size, output_size):
    largest = max(2, input_size, output_size)
    if block_size is None:
        return largest
    if block_size > largest:
        raise ValueError(
            "CirculantDense: `block_size` must be at most the larger of input size and units, "
            f"{largest}; got block_size={block_size}. Lower it, or give None for one circulant."
        )
    return block_size


def _resolve_seed(seed):
    """An integer seed; one drawn at random for `None`."""
    return random.randrange(2**32) if seed is None else validation.seed(seed, "CirculantDense")


def _signs(seed, size):
    """The diagonal of D. RandomState's stream is frozen: the seed alone restores it anywhere."""
    uniform = np.random.RandomState(seed).random_sample(size)
    return np.where(uniform < 0.5, -1.0, 1.0).astype("float32")
