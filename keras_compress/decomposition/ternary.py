"""TernaryFactors: a matrix as a sum of scaled outer products of vectors of -1, 0 and 1."""

import math

import numpy as np

from keras_compress.decomposition.factors import Factors, Stage

#: Rounds between the two vectors of a term end when one gains less than this share. Of all the
#: rounds that there may be a third is left, and the error of 0.503 becomes one of 0.507.
_GAIN = 1e-3
#: Steps of the power method from a term's first column.
_POWER_STEPS = 3
#: Rounds between the two latent factors.
_RECOVERY_ROUNDS = 10
#: How far a latent factor may be from its ternary one. At 1/2 it would round to another.
_REACH = 0.49


class TernaryFactors(Factors):
    """`W[n, t] ~ sum_r x[n, r] d[r] y[r, t]`, x and y of -1, 0 and 1, d not negative.

    Found greedily, term by term: the semidiscrete decomposition. A convolution kernel is unfolded
    to `(height * width * c_in, c_out)` and runs as a convolution of the same size to `rank`
    channels, a scale for each, and a 1x1 convolution; only the scales multiply.

    Reference:
        Wang, Cheng, "Fixed-point Factorized Networks", 2016.
        Kolda, O'Leary, "A Semidiscrete Matrix Decomposition for Latent Semantic Indexing in
        Information Retrieval", 1998.
    """

    form = "ternary"
    equation = "nr,r,rt->nt"
    stages = (Stage("conv", (0, 1)), Stage("scale"), Stage("conv"))
    kernel_ndims = (2, 4)

    @classmethod
    def shapes(cls, kernel_shape, rank):
        *inputs, outputs = kernel_shape
        return [(*inputs, *rank), tuple(rank), (*(1 for _ in inputs[:-1]), *rank, outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        # So many terms hold any matrix, an entry each.
        return (math.prod(kernel_shape),)

    @classmethod
    def unfoldings(cls, kernel):
        inputs, outputs = math.prod(kernel.shape[:-1]), kernel.shape[-1]
        raise ValueError(
            "form='ternary' takes `rank` as an integer: its terms are no singular vectors. About "
            f"min(inputs, outputs) = {min(inputs, outputs)} terms take an eighth of the room of "
            "float32 where the kernel is square, twice as many a quarter."
        )

    @classmethod
    def fit(cls, kernel, rank):
        factors = semidiscrete(kernel.reshape(-1, kernel.shape[-1]), *rank)
        shapes = cls.shapes(kernel.shape, rank)
        return cls(factor.reshape(shape) for factor, shape in zip(factors, shapes, strict=True))

    @classmethod
    def weights(cls, kernel_shape, rank):
        first, scale, last = map(math.prod, cls.shapes(kernel_shape, rank))
        return -(-2 * (first + last) // 32) + scale

    def operands(self):
        first, scale, last = self.arrays
        return [first.reshape(-1, len(scale)), scale, last.reshape(len(scale), -1)]

    def unpack(self, kernel):
        return kernel.reshape(-1, kernel.shape[-1])

    def pack(self, contracted):
        return contracted.reshape(*self.arrays[0].shape[:-1], -1)

    def scaled(self, scale):
        raise ValueError("Outputs of ternary factors cannot be scaled: their levels are -1, 0, 1.")


def semidiscrete(matrix, rank):
    """The greedy semidiscrete decomposition of a matrix.

    Each term starts from the largest column of the residual and improves its two vectors in turn
    until they stay; the residual's norm falls with every term until it is 0.

    Args:
        matrix: Array `(rows, columns)`.
        rank: Number of terms. Those that are left when the residual is 0 (to rounding) are zeros.

    Returns:
        `(x, d, y)` in the dtype of the matrix: arrays `(rows, rank)` and `(rank, columns)` of -1, 0
        and 1, and a vector of scales that are not negative.
    """
    rows, columns = matrix.shape
    x, d, y = (np.zeros(shape, matrix.dtype) for shape in ((rows, rank), rank, (rank, columns)))
    largest = np.abs(matrix).max() or 1
    residual = matrix / largest
    for term in range(rank):
        if np.abs(residual).max() <= 4 * np.finfo(matrix.dtype).eps:
            break
        x[:, term], d[term], y[term] = _term(residual)
        residual -= np.outer(d[term] * x[:, term], y[term])
    return x, d * largest, y


def _term(residual):
    """The vectors and the scale of a term: a local optimum."""
    column = residual[:, np.argmax(np.einsum("ij,ij->j", residual, residual))]
    # From the unit vector of that column itself, vectors stay sparse: the error of as many terms
    # would be nearly twice as large. After one step some are that column alone, with a scale so
    # large that LiteRT's int8 activations have few steps left for the other terms.
    y, reached = column @ residual, 0
    for _ in range(_POWER_STEPS - 1):
        y = (residual @ y) @ residual
        y /= np.abs(y).max()
    while True:
        x = ternary_maximizer(residual @ y)
        products = x @ residual
        y = ternary_maximizer(products)
        size = np.count_nonzero(x) * np.count_nonzero(y)
        gain = (products @ y) ** 2 / size
        if gain <= reached * (1 + _GAIN):
            return x, products @ y / size, y
        reached = gain


def ternary_maximizer(scores):
    """The vector x of -1, 0 and 1 with the largest `(x . scores)^2 / |x|^2`.

    Args:
        scores: Vector that is not zero.

    Returns:
        Vector: the signs of the J largest magnitudes, J the best of all numbers.

    Example:

    >>> ternary_maximizer(np.array([3.0, -2.0, 0.1])).tolist()
    [1.0, -1.0, 0.0]
    """
    magnitudes = np.abs(scores)
    order = np.argsort(-magnitudes, kind="stable")
    sums = np.cumsum(magnitudes[order])
    kept = order[: 1 + np.argmax(sums**2 / np.arange(1, len(sums) + 1))]
    x = np.zeros_like(scores)
    x[kept] = np.sign(scores[kept])
    return x


def recover(kernel, factors):
    """Real factors that round to ternary ones and whose product is nearer to the kernel.

    They are the latent weights that training starts from ("full-precision recovery"): how near an
    entry is to the next level says how little the kernel minds its going there. Fitted by projected
    gradient steps, which never raise `||kernel - x d y||`.

    Args:
        kernel: Array that the factors were fitted to.
        factors: `TernaryFactors`.

    Returns:
        `(x, y)` in float64, in the shapes of the factors' first and last arrays.
    """
    matrix = np.asarray(kernel, "float64").reshape(-1, kernel.shape[-1])
    first, scale, last = (np.asarray(operand, "float64") for operand in factors.operands())
    x, y = first.copy(), last.copy()
    for _ in range(_RECOVERY_ROUNDS):
        x = _closer(matrix, x, scale[:, None] * y, first)
        y = _closer(matrix.T, y.T, scale[:, None] * x.T, last.T).T
    return x.reshape(factors.arrays[0].shape), y.reshape(factors.arrays[2].shape)


def _closer(matrix, left, right, centre):
    """A step of `left` towards `matrix = left @ right`, at most `_REACH` from `centre`."""
    # Row sums of the Gram matrix bound its curvature, each for its own column.
    curvature = np.abs(right @ right.T).sum(1)
    gradient = (left @ right - matrix) @ right.T
    step = gradient / np.where(curvature > 0, curvature, 1.0)
    return np.clip(left - step, centre - _REACH, centre + _REACH)


def balanced_levels(factors):
    """Levels of the two factors at which both get gradients of one size ("weight balancing").

    With scales as large as a kernel's entries and factors of -1, 0 and 1, gradients would hardly
    move the factors. The scale of each term goes into its two vectors, so that they have one norm:
    the mean square of the gradient of an entry of one is in proportion to the squared norm of the
    other.

    Args:
        factors: `TernaryFactors`.

    Returns:
        `(a, b)`: vectors with `a * b = d`, and the norms of `a[r] x[:, r]` and `b[r] y[r]` equal.
        Terms of scale 0 have levels 1.
    """
    first, scale, last = (np.asarray(operand, "float64") for operand in factors.operands())
    used = scale > 0
    ratio = np.sqrt(np.maximum((last**2).sum(1), 1) / np.maximum((first**2).sum(0), 1))
    root = np.where(used, np.sqrt(scale), 1.0)
    ratio = np.where(used, np.sqrt(ratio), 1.0)
    return root * ratio, root / ratio
