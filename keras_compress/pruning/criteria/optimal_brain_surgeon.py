"""`OptimalBrainSurgeon`: weights by the loss that stays when all others make up for them."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.lowered import LoweredKernel, second_moments
from keras_compress.pruning.criteria.observer import Observer, sample_loss
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion
from keras_compress.pruning.criteria.weight_derivatives import WeightDerivatives

_LARGEST = 8192
_AT_ONCE = 32


class OptimalBrainSurgeon(WeightCriterion):
    """Scores weights by `w^2 / (2 [H^-1]_qq)`, the loss after the best change of the others.

    The scores are those of the first weight to go; `kc.pruning.obs_prune` also makes the change,
    and finds the scores anew after each removal.

    Args:
        damping: Added to the diagonal of `H`, as a share of the mean of that diagonal, so that it
            has an inverse; in (0, 1].
        block: Which weights can make up for one another. `"output"`: those of one output, where
            `H = X^T X / N` of the layer's own inputs (patches, for a convolution) and the loss is
            the squared error of the layer's outputs; needs data without labels, and Dense layers or
            convolutions. `"layer"`: all weights of a kernel, where `H` is the mean outer product of
            the gradients of the samples' losses; needs `data=(x, y)`, one output of the model, and
            kernels of at most 8192 weights.
        normalize: See `Criterion`.

    Reference:
        Hassibi, Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", 1993.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="fc")])
    >>> _ = model.layers[0].kernel.assign([[1.0], [1.0], [1.0]])
    >>> x = np.random.default_rng(0).normal(size=(64, 3))
    >>> x[:, 1] = x[:, 0]
    >>> score = kc.pruning.criteria.OptimalBrainSurgeon()(model, data=x)["fc/kernel"].ravel()
    >>> [bool(s < 1e-5) for s in score]
    [True, True, False]
    """

    def __init__(self, damping=1e-6, block="output", normalize="none"):
        super().__init__(normalize)
        self.damping = validation.number("damping", damping, 0, 1, low_open=True, owner=self)
        self.block = validation.one_of("block", block, ("output", "layer"), self)
        self.needs = "data" if block == "output" else "labels"

    def score(self, graph, parts, samples, loss):
        weights = [keras.ops.convert_to_numpy(p.variable).astype("float64") for p in parts]
        if self.block == "layer":
            diagonals = self._of_layers(graph, parts, samples, loss)
            return [w**2 / (2 * d) for w, d in zip(weights, diagonals, strict=True)]
        scores = []
        for weight, (lowered, moments) in zip(
            weights, layer_hessians(graph, parts, samples, self), strict=True
        ):
            inverse = np.linalg.inv(damped(moments, self.damping))
            diagonal = np.diagonal(inverse, axis1=1, axis2=2)[..., None]
            scores.append(lowered.from_matrices(lowered.to_matrices(weight) ** 2 / (2 * diagonal)))
        return scores

    def _of_layers(self, graph, parts, samples, loss):
        """Diagonals of the inverses of the kernels' Hessians."""
        for part in parts:
            size = int(np.prod(part.variable.shape))
            if size > _LARGEST:
                raise ValueError(
                    f"OptimalBrainSurgeon: block='layer' inverts a matrix of all {size} weights of "
                    f"'{part.name}', and takes at most {_LARGEST}. Use block='output'."
                )
        variables = [part.variable for part in parts]
        of_samples = sample_loss(graph.model, loss, self)
        derivatives = WeightDerivatives(graph.graph, variables, of_samples)
        rows = [[] for _ in parts]
        for inputs, targets in samples:
            for found in derivatives.gradients(inputs, targets):
                for kept, gradient in zip(rows, found, strict=True):
                    kept.append(gradient.reshape(len(gradient), -1).astype("float64"))
        diagonals = []
        for kept, variable in zip(rows, variables, strict=True):
            gradients = np.concatenate(kept)
            scale = np.mean(gradients**2) or 1.0
            inverse = recursive_inverse(gradients, self.damping * scale)
            diagonals.append(np.diagonal(inverse).reshape(tuple(variable.shape)))
        return diagonals


def layer_hessians(graph, parts, samples, owner):
    """`(LoweredKernel, X^T X / N)` for each of some kernels.

    Args:
        graph: `WeightGraph`.
        parts: List of `PrunableKernel`.
        samples: `Samples`.
        owner: Object or name that error messages begin with.
    """
    lowered = [LoweredKernel(part, graph.graph.calls, owner) for part in parts]
    observer = Observer(graph.graph, [value for one in lowered for value in one.inputs])
    return list(zip(lowered, second_moments(observer, lowered, samples), strict=True))


def damped(matrices, damping):
    """Matrices `(..., n, n)` with a share of their mean diagonal added to the diagonal."""
    diagonal = np.trace(matrices, axis1=-2, axis2=-1)[..., None, None] / matrices.shape[-1]
    # An input that is always zero has no scale of its own.
    return matrices + damping * np.where(diagonal > 0, diagonal, 1.0) * np.eye(matrices.shape[-1])


def recursive_inverse(rows, damping):
    """Inverse of `rows^T rows / len(rows) + damping I`, by updates of low rank.

    Woodbury's formula, for a few rows at a time: matrix products where row by row would be slow.

    Args:
        rows: float64 array `(P, n)`.
        damping: Number > 0.

    Returns:
        Array `(n, n)`.

    Example:

    >>> rows = np.random.default_rng(0).normal(size=(5, 3))
    >>> inverse = recursive_inverse(rows, 0.1)
    >>> np.allclose(inverse, np.linalg.inv(rows.T @ rows / 5 + 0.1 * np.eye(3)))
    True
    """
    inverse = np.eye(rows.shape[1]) / damping
    for start in range(0, len(rows), _AT_ONCE):
        few = rows[start : start + _AT_ONCE]
        columns = inverse @ few.T
        middle = len(rows) * np.eye(len(few)) + few @ columns
        inverse -= columns @ np.linalg.solve(middle, columns.T)
    return inverse
