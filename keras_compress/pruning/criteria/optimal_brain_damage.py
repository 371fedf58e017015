"""`OptimalBrainDamage`: weights by the loss that their deletion costs, to second order."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.observer import sample_loss
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion
from keras_compress.pruning.criteria.weight_derivatives import WeightDerivatives


class OptimalBrainDamage(WeightCriterion):
    """Scores weights by `h w^2 / 2`, with `h` the diagonal of the loss's Hessian.

    That is how much the mean loss over the data grows when the weight becomes zero, at a minimum
    of the loss and as far as weights do not interact. Needs `data=(x, y)` and a model with one
    output.

    Args:
        hessian: `"gauss_newton"`: exact diagonal of the Gauss-Newton matrix `J^T H J`, by one
            backward pass a sample for each output. `"fisher"`: mean of squared gradients of the
            samples, one backward pass; close to the former where the loss is a log-likelihood and
            the fit is good. `"hutchinson"`: `E[v * Hv]` over random signs `v`, an estimate of the
            true diagonal, which costs two backward passes a probe however many outputs there are;
            what it finds negative counts as 0.
        probes: Number of `v` for each batch, for `"hutchinson"`.
        seed: Integer seed of the signs.
        normalize: See `Criterion`.

    Reference:
        LeCun, Denker, Solla, "Optimal Brain Damage", 1989.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="fc")])
    >>> _ = model.layers[0].kernel.assign([[1.0], [1.0]])
    >>> x, y = np.array([[1.0, 10.0], [-1.0, 10.0]]), np.zeros((2, 1))
    >>> score = kc.pruning.criteria.OptimalBrainDamage()(model, data=(x, y), loss="mse")
    >>> score["fc/kernel"].ravel().round(2).tolist()
    [1.0, 100.0]
    """

    needs = "labels"

    def __init__(self, hessian="gauss_newton", probes=16, seed=0, normalize="none"):
        super().__init__(normalize)
        allowed = ("gauss_newton", "fisher", "hutchinson")
        self.hessian = validation.one_of("hessian", hessian, allowed, self)
        self.probes = validation.positive_int("probes", probes, self)
        self.seed = validation.seed(seed, self)

    def score(self, graph, parts, samples, loss):
        variables = [part.variable for part in parts]
        of_samples = sample_loss(graph.model, loss, self)
        derivatives = WeightDerivatives(graph.graph, variables, of_samples)
        rng = np.random.default_rng(self.seed)
        sums, count = [np.zeros(tuple(v.shape)) for v in variables], 0
        for inputs, targets in samples:
            diagonals = self._diagonals(derivatives, inputs, targets, rng)
            sums = [total + diagonal for total, diagonal in zip(sums, diagonals, strict=True)]
            count += len(targets)
        weights = [keras.ops.convert_to_numpy(v).astype("float64") for v in variables]
        return [
            np.maximum(total, 0.0) / count * weight**2 / 2
            for total, weight in zip(sums, weights, strict=True)
        ]

    def _diagonals(self, derivatives, inputs, targets, rng):
        if self.hessian == "gauss_newton":
            return derivatives.gauss_newton(inputs, targets)
        if self.hessian == "fisher":
            return derivatives.squared_gradients(inputs, targets)
        totals = [0.0] * len(derivatives.variables)
        for _ in range(self.probes):
            signs = [rng.choice(np.float32([-1, 1]), tuple(v.shape)) for v in derivatives.variables]
            products = derivatives.hessian_product(inputs, targets, signs)
            for index, (sign, product) in enumerate(zip(signs, products, strict=True)):
                totals[index] = totals[index] + sign * product / self.probes
        return totals
