"""Empirical variational Bayes matrix factorization: how many singular values rise above noise."""

import dataclasses
import math

import numpy as np

from keras_compress.decomposition.linalg import squared_spectrum

# Closed-form approximation of the zero of Nakajima's threshold equation, per sqrt(rows / columns).
_TAU = 2.5129


@dataclasses.dataclass(frozen=True)
class EVBMFResult:
    """Outcome of `evbmf`.

    Attributes:
        rank: Number of singular values above `threshold`.
        sigma2: Variance of the noise.
        threshold: Smallest singular value that counts as signal.
    """

    rank: int
    sigma2: float
    threshold: float


def evbmf(matrix):
    """Analytic global solution of empirical variational Bayes matrix factorization.

    The matrix is seen as low rank plus white noise of unknown variance; the variance minimises the
    free energy (one bounded variable), and the rank is the number of singular values that this
    noise cannot explain.

    Args:
        matrix: Array of shape `(rows, columns)`.

    Returns:
        An `EVBMFResult`.

    Raises:
        ValueError: if `matrix` has not two axes, is empty or not finite.

    Reference:
        Nakajima, Sugiyama, Babacan, Tomioka, "Global Analytic Solution of Fully-observed
        Variational Bayesian Matrix Factorization", 2013.
        Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power
        Mobile Applications", 2015.

    Example:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> signal = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 60))
    >>> evbmf(signal + 0.1 * rng.normal(size=(40, 60))).rank
    5
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(
            f"`matrix` must have two axes and entries; got matrix.shape={matrix.shape}. Unfold a "
            "kernel first: kernel.reshape(-1, kernel.shape[-1])."
        )
    if not np.isfinite(matrix).all():
        raise ValueError(
            "`matrix` must have finite entries; got NaN or infinity. Look for them in the trained "
            "weights."
        )
    return evbmf_of_spectrum(squared_spectrum(matrix), matrix.shape)


def evbmf_of_spectrum(squares, shape):
    """As `evbmf`, from the squared singular values.

    Args:
        squares: Squared singular values, largest first.
        shape: `(rows, columns)` of the matrix.
    """
    from scipy.optimize import minimize_scalar

    small, large = sorted(shape)
    squares = np.asarray(squares, "float64")[:small]
    scale = squares.sum() / (small * large)
    if scale == 0:
        return EVBMFResult(0, 0.0, 0.0)
    alpha = small / large
    tau = _TAU * math.sqrt(alpha)
    xbar = (1 + tau) * (1 + alpha / tau)
    # In units of the largest possible variance, the search does not depend on the matrix's scale.
    unit = squares / (large * scale)
    first = math.ceil(small / (1 + alpha)) - 1
    lower = max(unit[first] / xbar, unit[first:].mean())
    # A matrix without any noise still has rounding: of its float32 entries, and of the float64
    # Gram matrix that the spectrum comes from, which grows with its largest eigenvalue.
    rounding = np.finfo("float64").eps * large * unit[0] / xbar
    lower, upper = max(lower, rounding, 1e-14), 1.0

    def energy(sigma2):
        return _free_energy(unit, sigma2, alpha, xbar)

    # The free energy may have several valleys: the deepest on a grid, then refined.
    grid = np.geomspace(min(lower, upper), upper, 64)
    best = int(np.argmin(energy(grid[:, None])))
    low, high = math.log(grid[max(best - 1, 0)]), math.log(grid[min(best + 1, 63)])
    found = minimize_scalar(
        lambda exponent: energy(math.exp(exponent)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-10},
    )
    sigma2 = float(math.exp(found.x) * scale)
    threshold = math.sqrt(large * sigma2 * xbar)
    return EVBMFResult(int(np.sum(np.sqrt(squares) > threshold)), sigma2, threshold)


def _free_energy(unit, sigma2, alpha, xbar):
    # The terms ln(s^2) do not depend on sigma2; without them a zero singular value does no harm.
    x = unit / sigma2
    signal = np.maximum(x, xbar)
    shifted = signal - (1 + alpha)
    t = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0.0))) / 2
    explained = signal - t + np.log(t + 1) + alpha * np.log(t / alpha + 1)
    return np.sum(np.where(x > xbar, explained, x) + np.log(sigma2), axis=-1)
