"""TTDense: a dense layer whose kernel is a tensor train."""

import math

import keras
from keras import ops

from keras_compress.decomposition.tensor_train import (
    check_modes,
    contraction_order,
    resolve_modes,
    resolve_ranks,
    tt_matmul,
    tt_svd,
    tt_to_matrix,
)
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense


@keras.saving.register_keras_serializable(package="keras_compress")
class TTDense(CompressedDense):
    """Dense layer whose kernel is a tensor train (TT) of small cores.

    With `input_dim = prod(n_k)` and `units = prod(m_k)` the kernel is a chain of `d` cores of
    shape `(r_{k-1}, n_k, m_k, r_k)`, `r_0 = r_d = 1`. The input is reshaped to the grid
    `n_1 x ... x n_d` and contracted with one core after another; the kernel is never formed. The
    order of contraction is the one with the fewest multiply-accumulates (`contraction_order`).

    What it buys: a .tflite whose layer is the cores alone, run as RESHAPE, TRANSPOSE and
    FULLY_CONNECTED. The larger the layer the more: see `benchmarks/README.md`.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        input_modes: Factors `n_k` of the input size. `None`: as even as possible, about 8 each.
        output_modes: Factors `m_k` of `units`, as many as `input_modes`. `None`: likewise.
        rank: TT-ranks: an integer (every bond gets it, or as much as it can use) or `d - 1`
            integers. `from_layer` also takes a float in (0, 1): bound of the relative Frobenius
            error of the kernel.
        kernel_initializer: Spread of the kernel that the cores stand for: each core is normal with
            standard deviation `(sigma^2 / prod r_k)^(1 / 2d)`.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on each core.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if a product of modes is not the size it should be, the two lists of modes
            differ in length, or a rank is larger than the modes allow.

    Reference:
        Novikov, Podoprikhin, Osokin, Vetrov, "Tensorizing Neural Networks", 2015.

    Example:

    >>> layer = TTDense(1024, input_modes=(4, 8, 8, 4), output_modes=(4, 8, 8, 4), rank=8)
    >>> layer.build((None, 1024))
    >>> layer.count_params()
    9472
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        input_modes=None,
        output_modes=None,
        rank=8,
        **kwargs,
    ):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        self.input_modes, self.output_modes = check_modes(
            input_modes, output_modes, self.units, self
        )
        if self.input_modes and self.output_modes:
            rank = resolve_ranks(rank, self.input_modes, self.output_modes, self)
        self.rank = rank
        self.cores = []

    def build_kernel(self, input_channels):
        self.input_modes, self.output_modes = resolve_modes(
            self.input_modes, self.output_modes, input_channels, self.units, self
        )
        self.rank = resolve_ranks(self.rank, self.input_modes, self.output_modes, self)
        self._order, self._macs = contraction_order(self.input_modes, self.output_modes, self.rank)
        d = len(self.input_modes)
        sigma = initializer_stddev(self.kernel_initializer, input_channels, self.units)
        stddev = (sigma**2 / math.prod(self.rank)) ** (1 / (2 * d))
        bonds = (1, *self.rank, 1)
        self.cores = [
            self.add_kernel_weight(
                f"core_{k}",
                (bonds[k], self.input_modes[k], self.output_modes[k], bonds[k + 1]),
                self.normal_initializer(stddev, k),
            )
            for k in range(d)
        ]

    def apply_kernel(self, inputs):
        cores = [ops.convert_to_tensor(core) for core in self.cores]
        rows = ops.reshape(inputs, (-1, self.input_channels))
        outputs = tt_matmul(rows, cores, self.input_modes, self.output_modes, self._order)
        if len(inputs.shape) == 2:
            return outputs
        return ops.reshape(outputs, (-1, *inputs.shape[1:-1], self.units))

    def reconstruct_kernel(self):
        return tt_to_matrix([ops.convert_to_numpy(core) for core in self.cores])

    def kernel_macs(self):
        return self._macs

    @classmethod
    def fit_kernel(cls, kernel, *, input_modes=None, output_modes=None, rank=8):
        """Fits the cores by TT-SVD.

        Args:
            kernel: Array `(input_dim, units)`.
            input_modes: As for the layer.
            output_modes: As for the layer.
            rank: Integer, `d - 1` integers, or a float in (0, 1): error bound.
        """
        input_modes, output_modes = resolve_modes(
            input_modes, output_modes, *kernel.shape, cls.__name__
        )
        cores, _ = tt_svd(kernel, input_modes, output_modes, rank)
        arguments = {
            "input_modes": input_modes,
            "output_modes": output_modes,
            "rank": tuple(core.shape[-1] for core in cores[:-1]),
        }
        return arguments, cores

    def get_config(self):
        return {
            **super().get_config(),
            "input_modes": self.input_modes,
            "output_modes": self.output_modes,
            "rank": self.rank,
        }
