"""RankConstrainedDense: a dense layer whose filters are low-rank matrices."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.decomposition.ranks import resolve_rank
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense


@keras.saving.register_keras_serializable(package="keras_compress")
class RankConstrainedDense(CompressedDense):
    """Dense layer each of whose units has a filter of low rank over a grid, time x frequency.

    The input is `T` frames of `F` features, flattened. Unit `m` multiplies it with
    `sum_r b_{m,r} a_{m,r}^T`, a `T x F` matrix of rank `rank`: each frame with `a`, then the sum
    over time with the weights `b`. So a unit has `rank * (T + F)` weights instead of `T * F`. Each
    unit has factors of its own: the whole kernel need not be of low rank, as in `FactorizedDense`.

    What it buys: a .tflite of those weights, run as one FULLY_CONNECTED for all frames, MUL and
    SUM. Multiply-accumulates are `rank * (1 + 1 / F)` times the dense layer's, but the weights are
    read once for `T` frames: on LiteRT, rank 1 is about twice as fast as the dense layer at one
    sample a call, rank 2 about as fast. On a stream, where the window moves by a frame, the first
    product is needed for the new frame only: `rank * units * F` multiply-accumulates. A kernel that
    is smaller than its factors is stored as it is.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        input_grid: `(T, F)`: the input is a matrix of that shape, row by row.
        rank: Rank of each unit's filter, at most `min(T, F)`. `from_layer` also takes a float in
            (0, 1] (share of the squared singular values that every filter keeps), `"evbmf"` or a
            `kc.decomposition.RankPolicy`.
        kernel_initializer: Spread of the kernel that the factors stand for: each is normal with
            standard deviation `(sigma^2 / rank)^(1/4)`.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on each of the two factors, of shapes `(F, rank, units)` and
            `(T, rank, units)`.

    Input shape:
        `(batch, ..., T * F)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `input_grid` is no pair of positive integers whose product is the input size,
            or the rank is larger than it allows.

    Reference:
        Nakkiran, Alvarez, Prabhavalkar, Parada, "Compressing Deep Neural Networks Using a
        Rank-Constrained Topology", 2015.

    Example:

    >>> layer = RankConstrainedDense(128, input_grid=(32, 40), rank=1, use_bias=False)
    >>> layer.build((None, 32 * 40))
    >>> layer.count_params(), layer.expand().count_params()
    (9216, 163840)
    """

    def __init__(self, units, activation=None, use_bias=True, *, input_grid, rank=1, **kwargs):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        self.input_grid = _check_grid(input_grid, self)
        (self.rank,) = resolve_rank(rank, (min(self.input_grid),), owner=self)

    def build_kernel(self, input_channels):
        _check_size(self.input_grid, input_channels, self)
        sigma = initializer_stddev(self.kernel_initializer, input_channels, self.units)
        stddev = (sigma**2 / self.rank) ** 0.25
        self.time_weights, self.frequency_weights = (
            self.add_kernel_weight(
                name, (size, self.rank, self.units), self.normal_initializer(stddev, k)
            )
            for k, (name, size) in enumerate(
                zip(("time_weights", "frequency_weights"), self.input_grid, strict=True)
            )
        )

    def apply_kernel(self, inputs):
        frames, features = self.input_grid
        first = ops.reshape(ops.convert_to_tensor(self.frequency_weights), (features, -1))
        second = ops.reshape(ops.convert_to_tensor(self.time_weights), (-1, self.units))
        outputs = ops.matmul(ops.reshape(inputs, (-1, features)), first)
        # Frames and terms are summed as one axis.
        outputs = ops.reshape(outputs, (-1, frames * self.rank, self.units))
        outputs = ops.sum(outputs * second, axis=1)
        if len(inputs.shape) == 2:
            return outputs
        return ops.reshape(outputs, (-1, *ops.shape(inputs)[1:-1], self.units))

    def reconstruct_kernel(self):
        time, frequency = map(ops.convert_to_numpy, (self.time_weights, self.frequency_weights))
        kernel = np.einsum("tru,fru->tfu", time, frequency, optimize=True)
        return kernel.reshape(self.input_channels, self.units)

    def kernel_macs(self):
        """Those of the exported form, for a whole window."""
        frames, features = self.input_grid
        if not self._is_smaller():
            return frames * features * self.units
        return frames * (features + 1) * self.rank * self.units

    def export_form(self):
        """The factors; the dense layer where that is smaller."""
        self.check_built("export_form")
        return self if self._is_smaller() else self.expand()

    def _is_smaller(self):
        frames, features = self.input_grid
        return self.rank * (frames + features) < frames * features

    @classmethod
    def fit_kernel(cls, kernel, *, input_grid, rank=1):
        """Truncated SVD of each unit's filter.

        Args:
            kernel: Array `(T * F, units)`.
            input_grid: As for the layer.
            rank: As for `from_layer`.
        """
        grid = _check_grid(input_grid, cls.__name__)
        _check_size(grid, len(kernel), cls.__name__)
        left, values, right = np.linalg.svd(kernel.T.reshape(-1, *grid), full_matrices=False)
        (rank,) = resolve_rank(
            rank, (min(grid),), lambda: [[(each**2, grid) for each in values]], cls.__name__
        )
        # Both factors with the same norm.
        roots = np.sqrt(values[:, :rank])
        factors = (left[..., :rank] * roots[:, None], right[:, :rank] * roots[..., None])
        time, frequency = factors[0].transpose(1, 2, 0), factors[1].transpose(2, 1, 0)
        return {"input_grid": grid, "rank": rank}, [time, frequency]

    def get_config(self):
        return {**super().get_config(), "input_grid": self.input_grid, "rank": self.rank}


def _check_grid(input_grid, owner):
    grid = validation.positive_ints("input_grid", input_grid, owner)
    if len(grid) != 2:
        raise ValueError(
            f"{validation.prefix(owner)}`input_grid` must be a pair (frames, features); got "
            f"input_grid={input_grid!r}."
        )
    return grid


def _check_size(grid, input_size, owner):
    if grid[0] * grid[1] != input_size:
        raise ValueError(
            f"{validation.prefix(owner)}`input_grid` must have as many places as the input has "
            f"values, {input_size}; got input_grid={grid}, which has {grid[0] * grid[1]}."
        )
