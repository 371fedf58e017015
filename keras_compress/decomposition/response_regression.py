"""Regressions of low rank from a layer's responses, also through its ReLU."""

import numpy as np

from keras_compress.decomposition.linalg import leading_eigenvectors
from keras_compress.decomposition.refit import refit

#: Ridge towards the identity, as a share of the mean variance: directions that samples do not show.
_RIDGE = 1e-9
#: `(penalty, rounds)`, in turn: the schedule of Zhang et al.
RELAXATION = ((0.01, 25), (1.0, 25))


def reduced_rank_map(inputs, targets, rank, ridge=_RIDGE):
    """The matrix `M` of a rank that minimises `||targets - inputs M||^2`.

    With `targets` equal to `inputs` it is the projection on their principal components. Where the
    samples say nothing, `M` is the projection of the identity.

    Args:
        inputs: Array `(samples, n)`, centred.
        targets: Array `(samples, n)`, centred.
        rank: Integer.
        ridge: Of `||M - I||^2`, as a share of the mean square of the inputs.

    Returns:
        `(left, right)` of shapes `(n, rank)` and `(rank, n)`, whose product is `M`; `right` has
        orthonormal rows.

    Reference:
        Zhang, Zou, Ming, He, Sun, "Efficient and Accurate Approximations of Nonlinear Convolutional
        Networks", 2015, section 2.3 (there by a generalised SVD).
    """
    return _ReducedRank(inputs, ridge).solve(inputs.T @ targets, rank)


class _ReducedRank:
    """What the regression needs of the inputs, once for many targets."""

    def __init__(self, inputs, ridge):
        products = inputs.T @ inputs
        size = len(products)
        self._added = (ridge * np.trace(products) / size or 1.0) * np.eye(size)
        values, vectors = np.linalg.eigh(products + self._added)
        # Not by Cholesky: responses of dead channels are as good as dependent.
        self._inverse = (vectors / np.maximum(values, np.finfo("float64").tiny)) @ vectors.T

    def solve(self, cross, rank):
        """The best `(left, right)`."""
        cross = cross + self._added
        # Second moment of what the unrestricted map gives: its principal components stay.
        moment = cross.T @ self._inverse @ cross
        basis = leading_eigenvectors((moment + moment.T) / 2, rank)
        return self._inverse @ (cross @ basis), basis.T


class ChannelRegression:
    """Responses from the responses of the same filters to other inputs, by a map of low rank.

    Args:
        inputs: Array `(samples, outputs)`: responses as they are now.
        rank: Rank of the map.

    Attributes:
        left, right, bias: The map: `inputs @ left @ right + bias`.
    """

    def __init__(self, inputs, rank):
        self._mean = inputs.mean(0)
        self._inputs = inputs - self._mean
        self._rank = rank
        self._regression = _ReducedRank(self._inputs, _RIDGE)
        self.left = self.right = self.bias = None

    def fit(self, targets):
        """Sets the best map to targets `(samples, outputs)`, and returns what it predicts."""
        mean = targets.mean(0)
        cross = self._inputs.T @ (targets - mean)
        self.left, self.right = self._regression.solve(cross, self._rank)
        self.bias = mean - self._mean @ self.left @ self.right
        return self._inputs @ self.left @ self.right + mean

    @property
    def solution(self):
        """`(left, right, bias)`."""
        return self.left, self.right, self.bias


class FactorsRegression:
    """Responses from a layer's inputs, by a kernel in a factored form.

    Args:
        inputs: Array `(samples, inputs)`: the rows that the kernel is multiplied with.
        factors: `Factors` to start from.
    """

    def __init__(self, inputs, factors):
        self._mean = inputs.mean(0)
        self._inputs = inputs - self._mean
        self._products = self._inputs.T @ self._inputs / len(inputs)
        # From the second fit on, targets are near the last ones.
        self._effort = {}
        self.factors, self.bias = factors, None

    def fit(self, targets):
        """Improves the kernel for targets `(samples, outputs)`; returns what it predicts."""
        mean = targets.mean(0)
        cross = self._inputs.T @ (targets - mean) / len(targets)
        self.factors = refit(self.factors, self._products.__matmul__, cross, **self._effort)
        self._effort = {"sweeps": 1, "steps": 4}
        kernel = self.factors.reconstruct().reshape(cross.shape)
        self.bias = mean - self._mean @ kernel
        return self._inputs @ kernel + mean

    @property
    def solution(self):
        """`(factors, bias)`."""
        return self.factors, self.bias


def auxiliary_responses(predictions, targets, penalty):
    """The `z` that minimises `(relu(targets) - relu(z))^2 + penalty (z - predictions)^2`.

    Args:
        predictions: Array.
        targets: Array of the same shape.
        penalty: Positive number.
    """
    wanted = np.maximum(targets, 0.0)
    below = np.minimum(predictions, 0.0)
    above = np.maximum((penalty * predictions + wanted) / (penalty + 1.0), 0.0)
    cost_below = wanted**2 + penalty * (below - predictions) ** 2
    cost_above = (wanted - above) ** 2 + penalty * (above - predictions) ** 2
    return np.where(cost_below < cost_above, below, above)


def relu_error(predictions, targets):
    """`||relu(targets) - relu(predictions)||^2`."""
    return float(np.sum((np.maximum(targets, 0.0) - np.maximum(predictions, 0.0)) ** 2))


def relu_regression(regression, targets, relaxation=RELAXATION):
    """Fits a regression to targets as they are after ReLU, from the linear fit on.

    The targets are replaced by auxiliary ones, which may differ from them where ReLU makes them
    equal; these and the regression are optimised in turn.

    Args:
        regression: `ChannelRegression` or `FactorsRegression`.
        targets: Array `(samples, outputs)`: responses before ReLU.
        relaxation: Pairs of a penalty on the difference between the auxiliary responses and the
            predictions, and a number of rounds.

    Returns:
        `(solution, error)`: the best solution of the regression that was met, and its `relu_error`:
        at most that of the linear fit.

    Reference:
        Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and
        Detection", 2016, section 2.2.
    """
    predictions = regression.fit(targets)
    best, least = regression.solution, relu_error(predictions, targets)
    for penalty, rounds in relaxation:
        for _ in range(rounds):
            predictions = regression.fit(auxiliary_responses(predictions, targets, penalty))
            error = relu_error(predictions, targets)
            if error < least:
                best, least = regression.solution, error
    return best, least
