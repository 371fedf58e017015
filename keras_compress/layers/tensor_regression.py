"""TensorRegression: a dense layer on feature maps that are not flattened."""

import math
import string

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.decomposition.decompose import decompose
from keras_compress.decomposition.linalg import squared_spectrum
from keras_compress.decomposition.multilinear import (
    fit_tucker,
    tucker_limits,
    tucker_to_tensor,
    unfold,
)
from keras_compress.decomposition.ranks import resolve_rank
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense

_FORMS = ("cp", "tucker")


@keras.saving.register_keras_serializable(package="keras_compress")
class TensorRegression(CompressedDense):
    """`Flatten` and `Dense` in one, the kernel a tensor in CP or Tucker form: `<X, W_c> + b_c`.

    Takes the place of the widest layer of many convolutional networks, the dense layer behind the
    last feature map. With inputs of shape `(d1, ..., dk)` and `T` units:

    | `form` | `W[i1, ..., ik, c]` | stored values |
    |---|---|---|
    | `"cp"` | `sum_r U1[i1, r] ... Uk[ik, r] V[c, r]` | `R (d1 + ... + dk + T)` |
    | `"tucker"` | the same with a core `G[r1, ..., rk, rc]` | `sum di ri + T rc + prod r` |

    The inputs are multiplied by one factor after the other, the last axis first: the dense kernel
    is never formed, in the .tflite neither. That costs little more than a 1x1 convolution to as
    many channels as the last axis has terms.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        form: `"cp"` or `"tucker"`.
        rank: Number of terms; for `"tucker"` also one integer for each axis of the inputs and one
            for the units. One integer goes to all of them, or as much of it as each can use.
            `from_layer` also takes a float in (0, 1] (share of the squared singular values to keep
            in each unfolding), `"evbmf"` (singular values above the noise) or a
            `kc.decomposition.RankPolicy`.
        kernel_initializer: Spread of the dense kernel that the n factors stand for: each is normal
            with standard deviation `(sigma^2 / prod rank)^(1 / 2n)`.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on each factor.

    Input shape:
        `(batch, d1, d2, ...)`: two axes or more behind the batch, none of them open.

    Output shape:
        `(batch, units)`.

    Raises:
        ValueError: if an axis of the input is open or the only one, or a rank is larger than the
            kernel allows or depends on a kernel that a layer built from scratch does not have.

    Reference:
        "Learning with Tensors: Why Now and How?", workshop at NIPS 2016.
        Kossaifi, Lipton, Kolbeinsson, Khanna, Furlanello, Anandkumar, "Tensor Regression Networks",
        2020.

    Example:

    >>> layer = TensorRegression(1000, rank=8, use_bias=False)
    >>> layer.build((None, 7, 7, 512))
    >>> layer.count_params(), layer.expand().count_params()
    (12208, 25088000)
    """

    def __init__(self, units, activation=None, use_bias=True, *, form="cp", rank=8, **kwargs):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        self.form = validation.one_of("form", form, _FORMS, self)
        if self.form == "tucker" and isinstance(rank, (tuple, list)):
            self.rank = validation.positive_ints("rank", rank, self)
        else:
            (self.rank,) = resolve_rank(rank, (math.inf,), owner=self)
        self.input_spec = keras.layers.InputSpec(min_ndim=3)
        # A mask of steps has no meaning for an output that has none.
        self.supports_masking = False

    def build(self, input_shape):
        self._modes = _check_modes("input_shape", tuple(input_shape)[1:], self)
        super().build((None, math.prod(self._modes)))
        self.input_spec = keras.layers.InputSpec(shape=(None, *self._modes))

    def build_kernel(self, input_channels):
        shape = (*self._modes, self.units)
        ranks = resolve_rank(self.rank, _limits(self.form, shape), owner=self)
        self.rank = _plain(ranks)
        sigma = initializer_stddev(self.kernel_initializer, input_channels, self.units)
        tucker = self.form == "tucker"
        shapes = list(zip(shape, ranks if tucker else ranks * len(shape), strict=True))
        if tucker:
            shapes.append(ranks)
        stddev = (sigma**2 / math.prod(ranks)) ** (1 / (2 * len(shapes)))
        self.factors = [
            self.add_kernel_weight(f"factor_{k}", size, self.normal_initializer(stddev, k))
            for k, size in enumerate(shapes)
        ]

    def apply_kernel(self, inputs):
        apply = self._apply_cp if self.form == "cp" else self._apply_tucker
        return apply(inputs, [ops.convert_to_tensor(factor) for factor in self.factors])

    def _apply_cp(self, inputs, factors):
        *others, last, units = factors
        outputs = ops.matmul(inputs, last)
        for factor in reversed(others):
            # The terms stay apart: a product and a sum over one axis, no matrix product.
            outputs = ops.sum(ops.multiply(outputs, factor), axis=-2)
        return ops.matmul(outputs, ops.transpose(units))

    def _apply_tucker(self, inputs, factors):
        *bases, units, core = factors
        outputs, axes = inputs, len(bases)
        # Each axis is last in its turn, and all are in their places again after the last turn.
        for basis in reversed(bases):
            outputs = ops.matmul(outputs, basis)
            outputs = ops.transpose(outputs, (0, axes, *range(1, axes)))
        core = ops.reshape(core, (-1, core.shape[-1]))
        outputs = ops.matmul(ops.reshape(outputs, (-1, core.shape[0])), core)
        return ops.matmul(outputs, ops.transpose(units))

    def reconstruct_tensor(self):
        """The kernel with the axes of the inputs, then that of the units, as a numpy array."""
        factors = [ops.convert_to_numpy(factor) for factor in self.factors]
        if self.form == "tucker":
            return tucker_to_tensor(factors[-1], factors[:-1])
        letters = string.ascii_letters[: len(factors)]
        terms = ",".join(f"{letter}Z" for letter in letters)
        return np.einsum(f"{terms}->{letters}", *factors, optimize=True)

    def reconstruct_kernel(self):
        return self.reconstruct_tensor().reshape(-1, self.units)

    def macs(self, input_shape=None):
        """Multiply-accumulates of one sample.

        Args:
            input_shape: Not needed: it is the one that the layer was built for.
        """
        self.check_built("macs")
        return int(self.kernel_macs())

    def kernel_macs(self):
        sizes, total = list(self._modes), 0
        *bases, units = self.factors[: len(sizes) + 1]
        if self.form == "cp":
            # All terms at once along the last axis, then each by itself.
            rank = units.shape[-1]
            ends = (math.prod(sizes[: axis + 1]) for axis in range(len(sizes)))
            return rank * (sum(ends) + self.units)
        for axis in reversed(range(len(sizes))):
            total += math.prod(sizes) * bases[axis].shape[1]
            sizes[axis] = bases[axis].shape[1]
        return total + math.prod(self.factors[-1].shape) + math.prod(units.shape)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    @classmethod
    def from_layer(cls, layer, *, input_shape, **options):
        """Starts from a trained `keras.layers.Dense` that stands behind a `Flatten`.

        The new layer takes the place of both; in `kc.convert`, give `keras.layers.Identity()` for
        the `Flatten`.

        Args:
            layer: A built `keras.layers.Dense`.
            input_shape: Shape of one sample before the `Flatten`: `(7, 7, 512)`. Channels last or
                first, as the `Flatten` sees it.
            **options: `form`, `rank` (`"evbmf"` if not given), and arguments of `Dense` to change.

        Returns:
            A built `TensorRegression`.

        Raises:
            ValueError: if `layer` is no built Dense, or `input_shape` has another number of
                entries than its inputs.
        """
        modes = _check_modes("input_shape", input_shape, cls.__name__)
        return super().from_layer(layer, modes=modes, **options)

    @classmethod
    def fit_kernel(cls, kernel, *, modes, form="cp", rank="evbmf"):
        """Fits the factors: CP by non-linear least squares, Tucker by HOOI.

        Args:
            kernel: Array `(input_dim, units)`.
            modes: Shape of one sample, whose product is `input_dim`.
            form: As for the layer.
            rank: As for `from_layer`.
        """
        validation.one_of("form", form, _FORMS, cls.__name__)
        if math.prod(modes) != len(kernel):
            raise ValueError(
                f"{cls.__name__}: `input_shape` must be the shape that is flattened to the "
                f"{len(kernel)} inputs of the Dense layer; got input_shape={modes}, with "
                f"{math.prod(modes)} entries. Look at the input of the Flatten layer."
            )
        tensor = kernel.reshape(*modes, -1)
        fit = _fit_cp if form == "cp" else _fit_tucker
        ranks, factors = fit(tensor, rank, cls.__name__)
        return {"form": form, "rank": _plain(ranks)}, factors

    @classmethod
    def _fitted_input_shape(cls, layer, values):
        # One factor for each axis, that of the units, and the core: the only one with more axes.
        *modes, _ = (len(factor) for factor in values if factor.ndim == 2)
        return (None, *modes)

    def expand(self):
        """Returns the equivalent `keras.layers.Dense`, to be put behind a `Flatten`.

        Raises:
            ValueError: if the layer is not built.
        """
        return super().expand()

    def get_config(self):
        return {**super().get_config(), "form": self.form, "rank": self.rank}


def _check_modes(name, modes, owner):
    """Returns the axes of one sample as a tuple of integers, at least two."""
    modes = tuple(modes) if hasattr(modes, "__iter__") else (modes,)
    if len(modes) < 2 or None in modes:
        raise ValueError(
            f"{validation.prefix(owner)}`{name}` must have two axes or more behind the batch, none "
            f"of them open; got {modes} behind the batch. For one axis use FactorizedDense; give "
            "`keras.Input` a fixed shape."
        )
    return validation.positive_ints(name, modes, owner)


def _limits(form, shape):
    if form == "tucker":
        return tucker_limits(shape)
    # One term for each entry of all axes but the longest holds any tensor.
    return (math.prod(shape) // max(shape),)


def _fit_cp(tensor, rank, owner):
    if tensor.ndim > 4:
        raise ValueError(
            f"{owner}: form='cp' is fitted to kernels of two or three axes of inputs; got "
            f"input_shape={tensor.shape[:-1]}. Use form='tucker', or train from scratch."
        )
    # With two axes, the convolution kernel of height 1 that has the same entries.
    kernel = tensor.reshape((1,) * (4 - tensor.ndim) + tensor.shape)
    factors = decompose(kernel, "cp", rank, owner)
    columns = factors.columns()
    if tensor.ndim == 3:
        columns = (columns[0] * columns[1], *columns[2:])
    return factors.rank, list(columns)


def _fit_tucker(tensor, rank, owner):
    def spectra():
        matrices = (unfold(tensor, axis) for axis in range(tensor.ndim))
        return [[(squared_spectrum(matrix), matrix.shape)] for matrix in matrices]

    ranks = resolve_rank(rank, _limits("tucker", tensor.shape), spectra, owner)
    core, bases = fit_tucker(tensor, ranks)
    return ranks, [*bases, core]


def _plain(ranks):
    return ranks[0] if len(ranks) == 1 else ranks
