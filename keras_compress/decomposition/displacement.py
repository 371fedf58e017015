"""Matrices of low displacement rank: the product with a vector, the nearest one to a matrix.

For two operators `A` and `B` without a common eigenvalue, a square matrix `M` of size `n` is given
by its displacement `A M - M B = G H^T` (Sylvester), that is by two generators `G` and `H` of shape
`(n, r)`. The operators that are known by name are

    "shift"             Z_f, down by one, with f in the corner: f = 1 for A, f = -1 for B
    "transposed_shift"  its transpose
    "diagonal"          numbers in (-1, 1), those of A between those of B

so that `("shift", "shift")` gives Toeplitz-like, `("shift", "transposed_shift")` Hankel-like,
`("diagonal", "shift")` Vandermonde-like and `("diagonal", "diagonal")` Cauchy-like matrices.

With `c(A, B) = A^n - B^n`, a number for each row or column, the shifts give

    M = c^-1 sum_k A^(n-1-k) G H^T B^k

and the product with a vector is two steps with `n` Krylov coordinates between them. Each is a
circular (for A) or negacyclic (for B) correlation, by FFT, or, for a diagonal, a product with a
Vandermonde matrix. Two diagonals have the closed form `M_st = (G H^T)_st / (a_s - b_t)`.

Reference:
    Sindhwani, Sainath, Kumar, "Structured Transforms for Small-Footprint Deep Learning", 2015.
    Zhao, Liao, Wang, Li, Tang, Yuan, "Theoretical Properties for Neural Networks with Weight
    Matrices of Low Displacement Rank", 2017.
    Pan, "Structured Matrices and Polynomials", 2001.
"""

import functools

import keras
import numpy as np
from keras import ops

from keras_compress import validation

OPERATORS = ("shift", "transposed_shift", "diagonal")

# Rows of the identity that `displacement_to_matrix` multiplies at a time.
_ROWS = 256
_SWEEPS = 20
# From this size on a full SVD takes longer than all sweeps.
_LARGE = 512
# Width of the windows of a `CorrelationForm`: they are cut by an identity matrix of that size.
_WINDOW = 16


def check_operators(operators, owner=None):
    """Returns a pair of names of operators as a tuple, or raises `ValueError`."""
    if isinstance(operators, str) or len(tuple(operators)) != 2:
        raise ValueError(
            f"{validation.prefix(owner)}`operators` must be a pair of {', '.join(OPERATORS)}; got "
            f"operators={operators!r}. Toeplitz-like is ('shift', 'shift')."
        )
    return tuple(
        validation.one_of(f"operators[{i}]", name, OPERATORS, owner)
        for i, name in enumerate(operators)
    )


def operator_matrices(n, operators):
    """The operators `(A, B)` as dense float64 matrices of size `n`."""
    matrices = []
    for name, corner, nodes in zip(operators, (1, -1), _nodes(n), strict=True):
        if name == "diagonal":
            matrices.append(np.diag(nodes))
            continue
        shift = np.eye(n, k=-1)
        shift[0, -1] += corner
        matrices.append(shift if name == "shift" else shift.T)
    return tuple(matrices)


def displacement(matrix, operators=("shift", "shift")):
    """`A M - M B` of a square matrix, in float64.

    Args:
        matrix: Array `(n, n)`.
        operators: Names of `A` and `B`.
    """
    matrix = np.asarray(matrix, "float64")
    a, b = _nodes(len(matrix))
    left, right = check_operators(operators)
    if left == "diagonal":
        moved = a[:, None] * matrix
    else:
        moved = np.roll(matrix, 1 if left == "shift" else -1, axis=0)
    if right == "diagonal":
        return moved - matrix * b
    back = np.roll(matrix, -1 if right == "shift" else 1, axis=1)
    back[:, -1 if right == "shift" else 0] *= -1
    return moved - back


def displacement_matvec(inputs, g, h, operators=("shift", "shift")):
    """`M x` for each row `x` of the inputs; differentiable in all three.

    Computed in float32 at least: in half precision the transforms would lose what the result has.

    Args:
        inputs: Tensor `(rows, n)`.
        g: Tensor `(n, r)`.
        h: Tensor `(n, r)`.
        operators: Names of `A` and `B`.

    Returns:
        Tensor `(rows, n)`, of the dtype that a product of the inputs has.
    """
    dtype = keras.backend.result_type(inputs.dtype, g.dtype)
    wide = keras.backend.result_type(dtype, "float32")
    x, g, h = (ops.cast(each, wide) for each in (inputs, g, h))
    left, right = check_operators(operators)
    n = g.shape[0]
    if left == right == "diagonal":
        a, b = _nodes(n)
        # Differences of the nodes in float64: they are small where they count most.
        cauchy = ops.convert_to_tensor(1 / (a[:, None] - b), wide)
        matrix = ops.matmul(g, ops.transpose(h)) * cauchy
        return ops.cast(ops.matmul(x, ops.transpose(matrix)), dtype)
    # J Z J = Z^T for the reversal J: a transposed operator is the other one, seen in a mirror.
    if right == "transposed_shift":
        x, h = ops.flip(x, -1), ops.flip(h, 0)
    if left == "transposed_shift":
        g = ops.flip(g, 0)
    u = _from_diagonal(x, h) if right == "diagonal" else _from_shift(x, h)
    y = _to_diagonal(u, g) if left == "diagonal" else _to_shift(u, g)
    if left == "transposed_shift":
        y = ops.flip(y, -1)
    return ops.cast(y, dtype)


def toeplitz_like_matvecs(inputs, g, h):
    """`displacement_matvec` with several Toeplitz-like matrices at once: one FFT for all.

    Args:
        inputs: Tensor `(rows, n)`.
        g: Tensor `(matrices, n, r)`.
        h: Tensor `(matrices, n, r)`.

    Returns:
        Tensor `(rows, matrices, n)`, of the dtype that a product of the inputs has.
    """
    dtype = keras.backend.result_type(inputs.dtype, g.dtype)
    wide = keras.backend.result_type(dtype, "float32")
    x, g, h = (ops.cast(each, wide) for each in (inputs, g, h))
    matrices, n, rank = g.shape
    u = _from_shift(x, ops.reshape(ops.transpose(h, (1, 0, 2)), (n, matrices * rank)))
    return ops.cast(_to_shift(ops.reshape(u, (-1, matrices, rank, n)), g), dtype)


def displacement_to_matrix(g, h, operators=("shift", "shift")):
    """The dense float32 matrix `M` of two generators, as a numpy array."""
    g, h = (ops.convert_to_tensor(each, "float32") for each in (g, h))
    n = g.shape[0]
    columns = [
        ops.convert_to_numpy(
            displacement_matvec(
                ops.convert_to_tensor(np.eye(min(_ROWS, n - start), n, start, "float32")),
                g,
                h,
                operators,
            )
        )
        for start in range(0, n, _ROWS)
    ]
    return np.concatenate(columns).T


def stein_to_matrix(g, h, operators=("shift", "shift")):
    """The matrix with `M - A M B = G H^T` (Stein), for shifts: a Krylov sum.

    With `A^n = a I` and `B^n = f I` it is `sum_k A^k G H^T B^k / (1 - a f)`. Multiplied by the
    inverse of `B`, which is its transpose, the equation is Sylvester's.

    Args:
        g: Array `(n, r)`.
        h: Array `(n, r)`.
        operators: Names of `A` and `B`, `"shift"` or `"transposed_shift"`.

    Raises:
        ValueError: if an operator is a diagonal.
    """
    operators = check_operators(operators)
    if "diagonal" in operators:
        raise ValueError(
            "the Krylov sum needs operators a power of which is the identity, up to a factor; got "
            f"operators={operators}. Use shifts, or displacement_to_matrix() (Sylvester)."
        )
    flipped = {"shift": "transposed_shift", "transposed_shift": "shift"}[operators[1]]
    _, b = operator_matrices(len(g), operators)
    return displacement_to_matrix(g, -b @ np.asarray(h), (operators[0], flipped))


def displacement_gain(n, operators=("shift", "shift")):
    """Mean variance of the entries of `M` for one pair of generators of unit variance."""
    a, b = _nodes(n)
    left, right = operators
    if left == right == "diagonal":
        return float(np.mean(1 / (a[:, None] - b) ** 2))
    if left == "diagonal":
        return float(np.mean(np.sum(_left_vandermonde(n) ** 2, axis=1)))
    if right == "diagonal":
        return float(np.mean(np.sum(_right_vandermonde(n) ** 2, axis=0)))
    # n products in each entry, halved.
    return n / 4


def fit_displacement(matrix, rank, operators=("shift", "shift")):
    """Fits generators to a matrix: SVD of the displacement, then alternating least squares.

    The SVD is exact for a matrix of that displacement rank. For others, what it leaves out of the
    displacement may be large in the matrix; alternating least squares, in the bases in which the
    operators are diagonal, make the error of the matrix itself smaller with each sweep.

    Args:
        matrix: Array `(rows, columns)`: a part of the square matrix of size `max(rows, columns)`,
            whose other entries are free.
        rank: Integer `r`, at most that size.
        operators: Names of `A` and `B`.

    Returns:
        `(g, h)`: float32 arrays `(n, r)`.

    Raises:
        ValueError: if an operator is unknown, or the rank larger than the square matrix.
    """
    operators = check_operators(operators)
    matrix = np.asarray(matrix, "float64")
    rows, columns = matrix.shape
    n = max(rows, columns)
    rank = validation.integer("rank", rank, 1, n)
    square = np.pad(matrix, ((0, n - rows), (0, n - columns)))
    to_left, from_left, alpha = _eigenbasis(n, operators[0], 0)
    to_right, from_right, beta = _eigenbasis(n, operators[1], 1)
    basis, values, other = _leading_svd(displacement(square, operators), rank)
    g, h = basis * np.sqrt(values), other.T * np.sqrt(values)
    if rank < n:
        inverse = 1 / (alpha[:, None] - np.conj(beta))
        weights = np.abs(inverse) ** 2
        g, h = to_left(g), to_right(h)
        for sweep in range(_SWEEPS):
            if sweep and rows != columns:
                # Free entries, zeros at first, take what the fit says: the error can only shrink.
                fitted = from_left((g @ h.conj().T) * inverse)
                fitted = from_right(fitted.conj().T).conj().T.real
                fitted[:rows, :columns] = matrix
                square = fitted
            if not sweep or rows != columns:
                target = to_right(to_left(square).conj().T).conj().T * inverse.conj()
            g = _weighted_factor(target, weights, h)
            h = _weighted_factor(target.conj().T, weights.T, g)
        g, h = from_left(g).real, from_right(h).real
        # Generators of equal size.
        sizes = np.linalg.norm(g, axis=0), np.linalg.norm(h, axis=0)
        balance = np.sqrt((sizes[1] + 1e-30) / (sizes[0] + 1e-30))
        g, h = g * balance, h / balance
    return g.astype("float32"), h.astype("float32")


class CorrelationForm:
    """The product with shifts as operators, for inference: two correlations with the generators.

    Nothing but the generators is stored, and no FFT is needed; for that it takes as many
    multiply-accumulates as `3 r` dense layers. Signals are cut into windows, and windows multiplied
    by the generators folded to matrices, since LiteRT's convolutions are slow for a filter of many
    taps and a single channel.

    Args:
        n: Size of the matrix.
        rank: Number of generators of each side.
        operators: Names of `A` and `B`, shifts.
    """

    def __init__(self, n, rank, operators):
        self.n, self.rank = n, rank
        self.left, self.right = operators
        self.folds = -(-n // _WINDOW)

    def constants(self, g, h):
        """Arrays to store: `taps_in` and `taps_out`."""
        if self.right == "transposed_shift":
            h = h[::-1]
        if self.left == "shift":
            g = g[::-1]
        padding = ((0, self.folds * _WINDOW - self.n), (0, 0))
        h, g = (
            np.pad(np.asarray(each, "float32"), padding).reshape(self.folds, _WINDOW, self.rank)
            for each in (h, 0.5 * g)
        )
        return {
            "taps_in": h[:, None],
            "taps_out": g.transpose(2, 1, 0).reshape(self.rank * _WINDOW, self.folds),
        }

    def matvec(self, inputs, constants):
        """`displacement_matvec` of rows `(rows, n)`."""
        x = ops.flip(inputs, -1) if self.right == "transposed_shift" else inputs
        wrapped = ops.concatenate([ops.negative(x[:, 1:]), x], axis=1)
        # The coordinates in reverse: u[n - 1], ..., u[0].
        u = self._spread(self._windows(wrapped[:, :, None], 1), constants["taps_in"])
        wrapped = ops.concatenate([u[:, 1:], u], axis=1)
        y = self._gather(self._windows(wrapped, self.rank), constants["taps_out"])
        return ops.flip(y, -1) if self.left == "transposed_shift" else y

    def _windows(self, signal, channels):
        """The windows from each place on, of `(rows, 2 n - 1, channels)`.

        Returns:
            Tensor `(rows * places, channels * window)`, places being `2 folds - 1` windows long.
        """
        length = 2 * self.folds * _WINDOW - 1
        signal = ops.pad(signal, ((0, 0), (0, length - (2 * self.n - 1)), (0, 0)))
        signal = ops.reshape(ops.transpose(signal, (0, 2, 1)), (-1, length, 1))
        frame = ops.convert_to_tensor(np.eye(_WINDOW)[:, None], signal.dtype)
        windows = ops.conv(signal, frame, padding="valid", data_format="channels_last")
        places = length - _WINDOW + 1
        windows = ops.transpose(ops.reshape(windows, (-1, channels, places, _WINDOW)), (0, 2, 1, 3))
        return ops.reshape(windows, (-1, channels * _WINDOW))

    def _spread(self, windows, taps):
        """One signal into `rank`: a convolution over every `_WINDOW`-th place."""
        images = ops.reshape(windows, (-1, 2 * self.folds - 1, _WINDOW, _WINDOW))
        outputs = ops.conv(images, taps, padding="valid", data_format="channels_last")
        return ops.reshape(outputs, (-1, self.folds * _WINDOW, self.rank))[:, : self.n]

    def _gather(self, windows, taps):
        """`rank` signals into one.

        A convolution of one output would leave vector units idle: instead, the products with all
        folds of the taps at all places, and their sum along diagonals.
        """
        folds = self.folds
        products = ops.reshape(ops.matmul(windows, taps), (-1, 2 * folds - 1, _WINDOW, folds))
        # Rows one window longer: row m is then m windows late.
        flat = ops.reshape(
            ops.transpose(products, (0, 3, 1, 2)), (-1, folds * (2 * folds - 1) * _WINDOW)
        )
        flat = ops.pad(flat, ((0, 0), (0, folds * _WINDOW)))
        sheared = ops.reshape(flat, (-1, folds, 2 * folds * _WINDOW))[:, :, : folds * _WINDOW]
        return ops.sum(sheared, axis=1)[:, : self.n]

    def stored(self):
        """How many numbers are stored."""
        return _WINDOW * (2 * self.folds * self.rank + _WINDOW)

    def macs(self):
        """Multiply-accumulates for one row."""
        size = self.folds * _WINDOW
        places = 2 * size - _WINDOW
        windows = places * _WINDOW * _WINDOW * (1 + self.rank)
        return windows + self.rank * size * (size + places)


def _nodes(n):
    """Diagonals of A and B: in (-1, 1), at equal distances, one after the other in turn."""
    even = 2 * np.arange(n) + 0.5 - n
    return even / n, (even + 1) / n


def _from_shift(x, h):
    """`u_i[k] = h_i^T B^k x` for the negacyclic shift: `(rows, r, n)`."""
    n = x.shape[-1]
    # [h, -h] has the period 2 n, as h has under the shift.
    h = ops.transpose(ops.concatenate([h, ops.negative(h)], axis=0))
    return _correlation(h, ops.pad(x, ((0, 0), (0, n)))[:, None], 2 * n)[..., :n]


def _to_shift(u, g):
    """`sum_i sum_k A^(n-1-k) g_i u_i[k] / 2` for the cyclic shift: `(rows, ..., n)`."""
    n = g.shape[-2]
    g = ops.swapaxes(ops.roll(g, -1, axis=-2), -1, -2) * 0.5
    return _correlation(g, u, n, total=True)


def _correlation(taps, signal, period, total=False):
    """`sum_k taps[s + k] signal[k]` over the last axis; `total` sums over the generators."""
    tr, ti = ops.rfft(taps)
    xr, xi = ops.rfft(signal)
    real, imaginary = tr * xr + ti * xi, ti * xr - tr * xi
    if total:
        real, imaginary = ops.sum(real, axis=-2), ops.sum(imaginary, axis=-2)
    return ops.irfft((real, imaginary), fft_length=period)


def _from_diagonal(x, h):
    """`u_i[k] = sum_t 2 b_t^k / (1 - b_t^n) h_i[t] x[t]`; the factor 2 is halved in `_to_shift`."""
    terms = x[:, None] * ops.transpose(h)
    vandermonde = ops.convert_to_tensor(2 * _right_vandermonde(x.shape[-1]).T, x.dtype)
    return ops.matmul(terms, vandermonde)


def _to_diagonal(u, g):
    """`y[s] = sum_i g_i[s] sum_k a_s^(n-1-k) / (a_s^n + 1) u_i[k]`."""
    vandermonde = ops.convert_to_tensor(_left_vandermonde(u.shape[-1]).T, u.dtype)
    return ops.sum(ops.matmul(u, vandermonde) * ops.transpose(g), axis=1)


@functools.lru_cache(maxsize=8)
def _left_vandermonde(n):
    """`a_s^(n-1-k) / (a_s^n - f)` at `[s, k]`, for `B^n = f = -1`."""
    a, _ = _nodes(n)
    return a[:, None] ** np.arange(n)[::-1] / (a**n + 1)[:, None]


@functools.lru_cache(maxsize=8)
def _right_vandermonde(n):
    """`b_t^k / (f - b_t^n)` at `[k, t]`, for `A^n = f = 1`."""
    _, b = _nodes(n)
    return b ** np.arange(n)[:, None] / (1 - b**n)


def _eigenbasis(n, name, side):
    """A unitary basis in which an operator is diagonal.

    Args:
        n: Size.
        name: Name of the operator.
        side: 0 for A, 1 for B.

    Returns:
        `(to, back, values)`: functions that change the basis of columns, and the eigenvalues;
        those of the transpose for B, whose generators it multiplies from the other side.
    """
    if name == "diagonal":
        return (lambda x: x), (lambda x: x), _nodes(n)[side].astype("complex128")
    # Z_f = P Z_1 P^-1 f^(1/n) for P = diag(f^(-k/n)); Z_1 is diagonal in the Fourier basis.
    step = -1j * np.pi / n * side
    twist = np.exp(step * np.arange(n))[:, None]
    values = np.exp(-2j * np.pi * np.arange(n) / n - step)
    down = (name == "shift") == (side == 0)
    if not down:
        # The transpose of a real orthogonal matrix has the conjugate eigenvalues.
        values = values.conj()

    def to(x):
        return np.fft.fft(x / twist, axis=0, norm="ortho")

    def back(x):
        return twist * np.fft.ifft(x, axis=0, norm="ortho")

    return to, back, values


def _weighted_factor(target, weights, other):
    """The `g` that makes `(g other^H) * inverse` nearest to a matrix, row by row.

    Args:
        target: The matrix times the conjugate of `inverse`.
        weights: Squared magnitudes of `inverse`.
        other: The other generators.
    """
    rank = other.shape[1]
    products = (other[:, :, None].conj() * other[:, None, :]).reshape(len(other), -1)
    products = np.ascontiguousarray(products, "complex128")
    # A product of real matrices, with real and imaginary parts side by side.
    normal = (weights @ products.view("float64")).view("complex128").reshape(-1, rank, rank)
    # A little ridge for directions that no entry sees.
    ridge = 1e-12 * np.trace(normal, axis1=1, axis2=2).real[:, None, None] + 1e-300
    normal = normal + ridge * np.eye(rank)
    return np.linalg.solve(normal.swapaxes(1, 2), (target @ other)[:, :, None])[:, :, 0]


def _leading_svd(matrix, rank):
    """The `rank` leading singular triplets; of a large matrix by iteration on a random subspace.

    Exact up to rounding for a matrix of that rank; for others the start of a descent.
    """
    n = len(matrix)
    if n >= _LARGE and rank < n // 8:
        basis = np.random.default_rng(0).normal(size=(n, rank + 8))
        for _ in range(4):
            basis, _ = np.linalg.qr(matrix @ basis)
            basis, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ basis)
        inner, values, other = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        return basis @ inner[:, :rank], values[:rank], other[:rank]
    basis, values, other = np.linalg.svd(matrix)
    return basis[:, :rank], values[:rank], other[:rank]
