"""LDRDense: a dense layer whose kernel has low displacement rank."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.decomposition.displacement import (
    CorrelationForm,
    check_operators,
    displacement_gain,
    displacement_matvec,
    displacement_to_matrix,
    fit_displacement,
)
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense


@keras.saving.register_keras_serializable(package="keras_compress")
class LDRDense(CompressedDense):
    """Dense layer whose kernel has low displacement rank (LDR) under two operators.

    The transposed kernel is a part of a square matrix `M` of size `n = max(input_dim, units)` with
    `A M - M B = G H^T`: it has `2 n rank` free weights, the generators `G` and `H`, and is never
    formed unless both operators are diagonals. Missing inputs are zeros, surplus outputs are cut.

    The operators are named as in `decomposition.displacement`: `("shift", "shift")` is
    Toeplitz-like (`ToeplitzLikeDense`), `("shift", "transposed_shift")` Hankel-like, `("diagonal",
    "shift")` Vandermonde-like, `("diagonal", "diagonal")` Cauchy-like. With as many generators as
    `n` any of them holds every kernel.

    What it buys: with two shifts, a .tflite that stores the generators alone and runs slower than
    the dense layer (about `3 rank` times its multiply-accumulates). With a diagonal, a small
    `.keras` file only: the .tflite is that of the dense layer.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        rank: Displacement rank: columns of each generator, at most `n`.
        operators: Names of `A` and `B`: `"shift"`, `"transposed_shift"` or `"diagonal"` each.
        kernel_initializer: Spread of the kernel that the generators stand for; they are normal.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on each generator, of shape `(n, rank)`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if an operator is unknown, or `rank` is larger than `n`.

    Reference:
        Zhao, Liao, Wang, Li, Tang, Yuan, "Theoretical Properties for Neural Networks with Weight
        Matrices of Low Displacement Rank", 2017.

    Example:

    >>> layer = LDRDense(512, rank=4, operators=("diagonal", "shift"), use_bias=False)
    >>> layer.build((None, 512))
    >>> layer.count_params()
    4096
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        rank=4,
        operators=("shift", "shift"),
        **kwargs,
    ):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        self.rank = validation.positive_int("rank", rank, self)
        self.operators = check_operators(operators, self)

    def build_kernel(self, input_channels):
        n = _square_size(self.rank, input_channels, self.units, self)
        self._size = n
        sigma = initializer_stddev(self.kernel_initializer, input_channels, self.units)
        stddev = (sigma**2 / (self.rank * displacement_gain(n, self.operators))) ** 0.25
        self.g, self.h = (
            self.add_kernel_weight(name, (n, self.rank), self.normal_initializer(stddev, index))
            for index, name in enumerate(("g", "h"))
        )

    def apply_kernel(self, inputs):
        g, h = (ops.convert_to_tensor(each) for each in (self.g, self.h))
        return self.apply_square(
            inputs, lambda rows: displacement_matvec(rows, g, h, self.operators)
        )

    def apply_square(self, inputs, matvec):
        """Padding and cutting around `matvec`, a function of rows `(rows, n)`."""
        rows = ops.reshape(inputs, (-1, self.input_channels))
        if self.input_channels < self._size:
            rows = ops.pad(rows, ((0, 0), (0, self._size - self.input_channels)))
        outputs = matvec(rows)[:, : self.units]
        if len(inputs.shape) == 2:
            return outputs
        return ops.reshape(outputs, (-1, *ops.shape(inputs)[1:-1], self.units))

    def reconstruct_kernel(self):
        matrix = displacement_to_matrix(*self._generators(), self.operators)
        return matrix[: self.units, : self.input_channels].T

    def _generators(self):
        return ops.convert_to_numpy(self.g), ops.convert_to_numpy(self.h)

    def kernel_macs(self):
        """Those of the exported form."""
        form = self._inference_form()
        return self.input_channels * self.units if form is None else form.macs()

    def export_form(self):
        """The generators alone, multiplied without FFT; the dense layer where that is smaller."""
        self.check_built("export_form")
        form = self._inference_form()
        return self.expand() if form is None else _CorrelatedDense(self, form)

    def _inference_form(self):
        if "diagonal" in self.operators:
            return None
        form = CorrelationForm(self._size, self.rank, self.operators)
        return form if form.stored() < self.input_channels * self.units else None

    @classmethod
    def fit_kernel(cls, kernel, *, rank=4, operators=("shift", "shift")):
        """Fits the generators: see `decomposition.displacement.fit_displacement`.

        Args:
            kernel: Array `(input_dim, units)`.
            rank: As for the layer.
            operators: As for the layer.
        """
        rank = validation.positive_int("rank", rank, cls.__name__)
        operators = check_operators(operators, cls.__name__)
        _square_size(rank, *kernel.shape, cls.__name__)
        generators = fit_displacement(kernel.T, rank, operators)
        return {"rank": rank, "operators": operators}, list(generators)

    def get_config(self):
        return {**super().get_config(), "rank": self.rank, "operators": self.operators}


class _CorrelatedDense(keras.layers.Layer):
    """What a .tflite stores in place of an `LDRDense`: the generators as taps of correlations.

    Args:
        layer: A built `LDRDense`, which gives everything but the product.
        form: The form of that product: a `CorrelationForm`.
    """

    def __init__(self, layer, form):
        super().__init__(name=layer.name, dtype=layer.dtype_policy, trainable=False)
        self.supports_masking = True
        self.layer = layer
        self.form = form
        self.constants = {}
        for name, value in form.constants(*layer._generators()).items():
            self.constants[name] = self.add_weight(name=name, shape=value.shape)
            self.constants[name].assign(value)
        self.built = True

    def call(self, inputs):
        constants = {name: ops.convert_to_tensor(w) for name, w in self.constants.items()}
        outputs = self.layer.apply_square(inputs, lambda x: self.form.matvec(x, constants))
        return self.layer.add_bias_and_activate(outputs)


def _square_size(rank, input_size, output_size, owner):
    """Size of the square matrix that the kernel is a part of."""
    size = max(input_size, output_size)
    if rank > size:
        raise ValueError(
            f"{validation.prefix(owner)}`rank` must be at most the larger of input size and units, "
            f"{size}, which holds every kernel; got rank={rank}. Lower it."
        )
    return size
