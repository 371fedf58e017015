"""FireFactors: a kernel as a linear squeeze and two expansions."""

import dataclasses

import numpy as np

#: Ridge of the regressions, as a share of the mean square of what they read.
_RIDGE = 1e-6


@dataclasses.dataclass(frozen=True)
class FireFactors:
    """A 3x3 kernel whose filters read few mixtures of the input channels, some at one tap only.

    Attributes:
        squeeze: Array `(channels, squeezed)`.
        expand1x1: Array `(squeezed, filters)`: the first filters.
        expand3x3: Array `(3, 3, squeezed, filters)`: the others.
        tap: Index of the tap that the first filters read.
    """

    squeeze: np.ndarray
    expand1x1: np.ndarray
    expand3x3: np.ndarray
    tap: tuple

    @classmethod
    def fit(cls, kernel, squeeze, expand1x1, tap=(1, 1), moment=None):
        """The factors nearest to a kernel in the Frobenius norm.

        Args:
            kernel: Array `(3, 3, channels, filters)`.
            squeeze: Number of squeezed channels.
            expand1x1: Number of filters of the 1x1 expansion.
            tap: Index of their tap.
            moment: Second moment of the channels `(channels, channels)`: what mixtures are weighed
                by. `None` for the identity.
        """
        small, large = kernel[tap][:, :expand1x1], kernel[..., expand1x1:]
        parts = np.concatenate([small, np.moveaxis(large, 2, 0).reshape(len(small), -1)], 1)
        root, inverse = (np.eye(len(small)),) * 2 if moment is None else _roots(moment)
        left, _, _ = np.linalg.svd(root @ parts, full_matrices=False)
        mixtures = left[:, :squeeze]
        if mixtures.shape[1] < squeeze:
            mixtures = np.linalg.qr(np.concatenate([mixtures, np.eye(len(small))], 1))[0]
            mixtures = mixtures[:, :squeeze]
        unmixed = mixtures.T @ root
        return cls(
            inverse @ mixtures,
            unmixed @ small,
            np.einsum("rs,ijst->ijrt", unmixed, large),
            tap,
        )

    def reconstruct(self):
        """The kernel that the factors stand for."""
        small = np.zeros((3, 3, len(self.squeeze), self.expand1x1.shape[1]))
        small[self.tap] = self.squeeze @ self.expand1x1
        large = np.einsum("sr,ijrt->ijst", self.squeeze, self.expand3x3)
        return np.concatenate([small, large], -1)

    def fitted(self, kernel, patches, targets):
        """Factors fitted to responses, by least squares given the squeeze.

        Args:
            kernel: The kernel that these are factors of.
            patches: Array `(rows, 9 * channels)`.
            targets: Array `(rows, filters)` to be given for the patches.

        Returns:
            `(factors, bias)`.
        """
        channels, first = len(self.squeeze), self.expand1x1.shape[1]
        pixels = patches.reshape(-1, channels)
        moment = pixels.T @ pixels / len(pixels)
        start = self.fit(kernel, self.squeeze.shape[1], first, self.tap, moment)
        squeezed = patches.reshape(len(patches), 3, 3, channels) @ start.squeeze
        small, small_bias = _regress(squeezed[:, *self.tap], start.expand1x1, targets[:, :first])
        flat = squeezed.reshape(len(patches), -1)
        large, large_bias = _regress(
            flat, start.expand3x3.reshape(flat.shape[1], -1), targets[:, first:]
        )
        factors = FireFactors(start.squeeze, small, large.reshape(start.expand3x3.shape), self.tap)
        return factors, np.concatenate([small_bias, large_bias])


def _roots(moment):
    """Square root of a moment, and the root's inverse; directions never seen count a little."""
    values, vectors = np.linalg.eigh(moment)
    roots = np.sqrt(np.maximum(values, _RIDGE * (values.mean() or 1.0)))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _regress(inputs, start, targets):
    """`(matrix, bias)` nearest to the targets; what the rows do not say stays as at the start."""
    mean, wanted = inputs.mean(0), targets.mean(0)
    centred = inputs - mean
    products = centred.T @ centred
    ridge = _RIDGE * np.trace(products) / len(products) or 1.0
    error = targets - wanted - centred @ start
    change = np.linalg.solve(products + ridge * np.eye(len(products)), centred.T @ error)
    matrix = start + change
    return matrix, wanted - mean @ matrix
