"""SeparableBasisFactors: a few separable filters for each input channel, and their mixtures."""

import numpy as np

from keras_compress.decomposition.factors import Factors, Stage


class SeparableBasisFactors(Factors):
    """`K[i, j, s, t] ~ sum_m v[i, s, m] h[j, s, m] a[s, m, t]`: scheme 1 of Jaderberg et al.

    Each input channel has `rank` filters, each the product of a vertical and a horizontal one. Runs
    as a (height x 1) depthwise convolution with that multiplier, a (1 x width) depthwise one, and a
    1x1 convolution. For each input channel this is a sum of outer products of three vectors, fitted
    by alternating least squares from the singular vectors.

    Reference:
        Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank
        Expansions", 2014 (scheme 1).
    """

    form = "separable_basis"
    equation = "ism,jsm,smt->ijst"
    stages = (Stage("depthwise", (0,)), Stage("depthwise", (1,)), Stage("conv"))

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        (terms,) = rank
        basis = inputs * terms
        return [(height, 1, inputs, terms), (1, width, basis, 1), (1, 1, basis, outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        height, width, _, outputs = kernel_shape
        return (min(height * width, height * outputs, width * outputs),)

    @classmethod
    def unfoldings(cls, kernel):
        # For each input channel the three unfoldings of its filters; as for CP, each is a bound.
        found = []
        for filters in np.moveaxis(kernel, 2, 0):
            height, width, outputs = filters.shape
            found += [
                filters.reshape(height * width, outputs),
                filters.reshape(height, -1),
                filters.transpose(1, 0, 2).reshape(width, -1),
            ]
        return [found]

    @classmethod
    def fit(cls, kernel, rank):
        height, width, inputs, outputs = kernel.shape
        (terms,) = rank
        v, h, a = alternating_least_squares(kernel.transpose(2, 0, 1, 3), terms)
        arrays = (
            v.transpose(1, 0, 2)[:, None],
            h.transpose(1, 0, 2).reshape(1, width, inputs * terms, 1),
            a.transpose(0, 2, 1).reshape(1, 1, inputs * terms, outputs),
        )
        return cls(np.ascontiguousarray(array, kernel.dtype) for array in arrays)

    def operands(self):
        vertical, horizontal, mixture = self.arrays
        height, _, inputs, terms = vertical.shape
        return [
            vertical.reshape(height, inputs, terms),
            horizontal.reshape(-1, inputs, terms),
            mixture.reshape(inputs, terms, -1),
        ]


#: Sweeps of the alternating least squares, and the relative fall of the error that ends them.
_SWEEPS, _TOLERANCE = 300, 1e-5
#: Ridge, as a share of the mean square of the columns: terms may become parallel.
_RIDGE = 1e-10


def alternating_least_squares(tensors, rank):
    """`X[n, i, j, k] ~ sum_r a[n, i, r] b[n, j, r] c[n, k, r]`, for all n at once.

    Args:
        tensors: Array `(number, I, J, K)`.
        rank: Number of terms of each.

    Returns:
        `(a, b, c)` in float64; the columns of each term have equal norm.
    """
    tensors = np.asarray(tensors, "float64")
    number, first, second, third = tensors.shape
    a, b, c = _start(tensors, rank)
    unfolded = (
        tensors.reshape(number, first, -1),
        tensors.transpose(0, 2, 1, 3).reshape(number, second, -1),
        tensors.transpose(0, 3, 1, 2).reshape(number, third, -1),
    )
    total = np.sum(tensors**2)
    before = np.inf
    for _ in range(_SWEEPS):
        a = _solved(unfolded[0], b, c)
        b = _solved(unfolded[1], a, c)
        c = _solved(unfolded[2], a, b)
        error = np.sum((unfolded[2] - c @ _products(a, b).transpose(0, 2, 1)) ** 2)
        if before - error <= _TOLERANCE * error or error <= 1e-14 * total:
            break
        before = error
    norms = [np.linalg.norm(factor, axis=1, keepdims=True) for factor in (a, b, c)]
    target = np.prod(norms, axis=0) ** (1 / 3)
    return tuple(
        factor * target / np.where(norm > 0, norm, 1.0)
        for factor, norm in zip((a, b, c), norms, strict=True)
    )


def _start(tensors, rank):
    """Filters of each tensor's principal components, each split into singular vectors."""
    number, first, second, third = tensors.shape
    flat = tensors.reshape(number, first * second, third)
    left, values, _ = np.linalg.svd(flat, full_matrices=False)
    filters = left.transpose(0, 2, 1).reshape(number, -1, first, second)
    u, s, v = np.linalg.svd(filters, full_matrices=False)
    # The separable parts of all components, the largest first.
    weights = (values[:, :, None] * s).reshape(number, -1)
    order = np.argsort(-weights, axis=1, kind="stable")[:, :rank]
    u = u.transpose(0, 1, 3, 2).reshape(number, -1, first)
    v = v.reshape(number, -1, second)
    a = np.take_along_axis(u, order[..., None], 1).transpose(0, 2, 1)
    b = np.take_along_axis(v, order[..., None], 1).transpose(0, 2, 1)
    missing = rank - a.shape[2]
    if missing:
        rng = np.random.default_rng(0)
        a = np.concatenate([a, rng.normal(size=(number, first, missing))], 2)
        b = np.concatenate([b, rng.normal(size=(number, second, missing))], 2)
    return a, b, _solved(flat.transpose(0, 2, 1), a, b)


def _products(a, b):
    """Khatri-Rao products `(number, I * J, rank)`."""
    return (a[:, :, None] * b[:, None]).reshape(len(a), -1, a.shape[2])


def _solved(unfolded, a, b):
    """The factor that fits best with the other two as they are."""
    gram = (a.transpose(0, 2, 1) @ a) * (b.transpose(0, 2, 1) @ b)
    ridge = _RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] + np.finfo("float64").tiny
    gram = gram + ridge * np.eye(gram.shape[1])
    return np.linalg.solve(gram, (unfolded @ _products(a, b)).transpose(0, 2, 1)).transpose(0, 2, 1)
