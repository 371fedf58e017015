"""`Mixture`: Gaussians on a line, and weights set to the mean of the one that they belong to."""

import dataclasses

import numpy as np

# Weights whose components are looked at together: 17 components make 9 MB of it.
_CHUNK = 65_536


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Mixture of Gaussians `sum_j shares_j N(w; means_j, sigmas_j^2)`.

    Args:
        shares: float64 array, one entry a component, with sum 1.
        means: float64 array; the component of index 0 has mean 0.
        sigmas: float64 array of standard deviations.

    Example:

    >>> import numpy as np
    >>> mixture = Mixture(np.array([0.5, 0.5]), np.array([0.0, 1.0]), np.array([0.1, 0.1]))
    >>> mixture.quantize(np.array([-0.2, 0.3, 0.8])).tolist()
    [0.0, 0.0, 1.0]
    """

    shares: np.ndarray
    means: np.ndarray
    sigmas: np.ndarray

    def __len__(self):
        return len(self.means)

    def log_joint(self, w):
        """`log(shares_j N(w_i; means_j, sigmas_j^2))`.

        Args:
            w: Array of any shape.

        Returns:
            float64 array of the shape of `w` and one more axis for the components.
        """
        z = (np.asarray(w, "float64")[..., None] - self.means) / self.sigmas
        return np.log(self.shares / self.sigmas) - 0.5 * (z**2 + np.log(2 * np.pi))

    def quantize(self, w):
        """Sets each weight to the mean of the component with the largest responsibility.

        Args:
            w: Array of any shape.

        Returns:
            float32 array of the same shape with at most as many values as there are components;
            those of component 0 are exactly 0.
        """
        flat = np.asarray(w, "float32").reshape(-1)
        chosen = np.empty(flat.shape, np.intp)
        for start in range(0, len(flat), _CHUNK):
            part = slice(start, start + _CHUNK)
            chosen[part] = self.log_joint(flat[part]).argmax(axis=-1)
        return self.means.astype("float32")[chosen].reshape(np.shape(w))

    def merged(self, below):
        """Merges components that are nearly the same, the nearest pair first.

        A pair becomes the Gaussian of its mean and variance; the mean of component 0 stays 0.

        Args:
            below: Pairs merge while their symmetric KL divergence, `KL(p, q) + KL(q, p)`, is at
                most this. For equal sigmas it is the square of the distance in sigmas.

        Returns:
            The new `Mixture`.
        """
        shares, means = self.shares.copy(), self.means.copy()
        variances = self.sigmas**2
        while len(means) > 1:
            divergences = _symmetric_kl(means, variances)
            first, second = np.unravel_index(divergences.argmin(), divergences.shape)
            if divergences[first, second] > below:
                break
            pair = [min(first, second), max(first, second)]
            share = shares[pair].sum()
            weights = shares[pair] / share
            mean = 0.0 if pair[0] == 0 else weights @ means[pair]
            variance = weights @ (variances[pair] + (means[pair] - mean) ** 2)
            shares, means, variances = (
                _replaced(values, pair, value)
                for values, value in ((shares, share), (means, mean), (variances, variance))
            )
        return Mixture(shares, means, np.sqrt(variances))


def _symmetric_kl(means, variances):
    squares = (means[:, None] - means) ** 2
    ratios = (variances[:, None] + squares) / variances
    divergences = (ratios + ratios.T) / 2 - 1
    np.fill_diagonal(divergences, np.inf)
    return divergences


def _replaced(values, pair, value):
    values = np.delete(values, pair[1])
    values[pair[0]] = value
    return values
