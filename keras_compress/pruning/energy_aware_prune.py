"""`energy_aware_prune`: weights go first where the energy is; what stays makes up for them."""

import keras
import numpy as np
import scipy.linalg

from keras_compress import validation
from keras_compress.convert import check_graph, rebuild
from keras_compress.pruning import masks
from keras_compress.pruning.criteria.lowered import LoweredKernel
from keras_compress.pruning.criteria.optimal_brain_surgeon import damped
from keras_compress.pruning.criteria.patches import PatchSampler
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.pruning.prune_weights import masked_copy
from keras_compress.samples import Samples

_LAYERS = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
# Halvings of the interval of sparsities, and rounds in which weights are restored.
_STEPS = 7
_ROUNDS = 4


def energy_aware_prune(
    model,
    data,
    tolerance=0.01,
    *,
    layers=None,
    restored=0.2,
    hierarchy="eyeriss",
    images=256,
    positions=10,
    damping=1e-6,
    seed=0,
    batch_size=64,
):
    """Prunes weights layer by layer, the layer that takes the most energy first.

    Of each layer, as many weights go as its outputs bear, before their activation and at sampled
    positions, with the inputs of the model as pruned so far and the original's outputs as the
    target: the smallest in magnitude go; some of them, those whose absence costs the most, are
    restored; all that are left are refitted by least squares, output by output. Layers that come
    first have the inputs closest to the original's, and so lose the most: therefore the order.

    No labels are needed, and nothing is trained: fine-tune the result. It is masked as that of
    `kc.pruning.prune_weights`: `fit` keeps the zeros, `kc.pruning.strip` makes it a plain model.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        data: An array, `(x, y)` or an iterable of batches; targets are not looked at.
        tolerance: Largest squared error of a layer's outputs on the data that pruning it may add,
            as a share of their squared norm, biases left out, in (0, 1).
        layers: Names, globs, classes, layers or predicates of Dense layers and convolutions; `None`
            for all trainable ones.
        restored: Share of the weights that stay which are chosen by the error that they would
            leave, not by magnitude, in [0, 1].
        hierarchy: Of `kc.profile.energy`.
        images: Number of samples that patches are taken from, drawn from the data.
        positions: Number of output positions of each sample.
        damping: Of the least squares, see `kc.pruning.reconstruct`.
        seed: Of the draws.
        batch_size: Rows of `data` at a time.

    Returns:
        A new model, compiled like `model` if that is.

    Raises:
        ValueError: if the model has no graph or is under a pruning mask, `layers` chooses nothing
            or a layer of another kind, a shape is open, or data does not fit.

    Reference:
        Yang, Chen, Sze, "Designing Energy-efficient Convolutional Neural Networks Using
        Energy-aware Pruning", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> x = np.random.default_rng(0).normal(size=(200, 16)) @ np.tri(16)
    >>> pruned = kc.pruning.energy_aware_prune(model, x, 0.05)
    >>> kc.profile.energy(pruned).total < 0.8 * kc.profile.energy(model).total
    True
    """
    owner = "energy_aware_prune"
    check_graph(model, owner)
    refuse_masked(model, owner)
    tolerance = validation.number(
        "tolerance", tolerance, 0, 1, low_open=True, high_open=True, owner=owner
    )
    restored = validation.number("restored", restored, 0, 1, owner=owner)
    damping = validation.number("damping", damping, 0, 1, low_open=True, owner=owner)
    criterion = _Products()
    graph = criterion.open(model)
    kernels = by_energy(model, criterion.parts(graph, layers), hierarchy)
    samples = Samples(model, data, batch_size, owner=owner)
    sampler = PatchSampler(samples, images, positions, seed, owner)
    copy = criterion.open(rebuild(model, {}))
    copies = {kernel.name: kernel for kernel in copy.kernels}
    chosen, values = {}, {}
    for kernel in kernels:
        new = copies[kernel.name]
        lowered = LoweredKernel(kernel, graph.graph.calls, owner)
        weight = keras.ops.convert_to_numpy(kernel.variable)
        matrices = lowered.to_matrices(weight.astype("float64"))
        fit = LayerFit(matrices, damping)
        pairs = zip(
            sampler.rows(graph.graph, [lowered]),
            sampler.rows(copy.graph, [LoweredKernel(new, copy.graph.calls, owner)]),
            strict=True,
        )
        for (_, before), (_, after) in pairs:
            fit.update(before, after)
        stays, matrices = fit.sparsest(tolerance, restored)
        chosen[kernel.name] = lowered.from_matrices(stays)
        values[kernel.name] = lowered.from_matrices(matrices)
        new.variable.assign(values[kernel.name].astype(weight.dtype))
    return masked_copy(model, chosen, values)


def by_energy(model, kernels, hierarchy="eyeriss"):
    """Kernels in descending order of the energy of the layers that they are in.

    Args:
        model: The model.
        kernels: List of `PrunableKernel`.
        hierarchy: Of `kc.profile.energy`.
    """
    # Above this floor.
    from keras_compress.profile.energy import energy

    rows = energy(model, hierarchy).layers
    energies = [sum(row.energy for row in rows if row.layer in kernel.chain) for kernel in kernels]
    return [kernels[place] for place in np.argsort(-np.array(energies), kind="stable")]


class LayerFit:
    """Sparse kernels for a layer whose outputs are to stay what they were.

    Args:
        matrices: float64 array `(groups, inputs, outputs)`: the lowered kernel.
        damping: Of the least squares.
    """

    def __init__(self, matrices, damping):
        self.matrices = matrices
        self._damping = damping
        self._products, self._overlaps, self._norm = 0.0, 0.0, 0.0

    def update(self, before, after):
        """Takes in rows `(groups, rows, inputs)` of the original and of the pruned model."""
        targets = before @ self.matrices
        self._products = self._products + after.transpose(0, 2, 1) @ after
        self._overlaps = self._overlaps + after.transpose(0, 2, 1) @ targets
        self._norm += np.square(targets).sum()

    def error(self, matrices):
        """Squared error of the outputs, as a share of their squared norm."""
        inner = (matrices * (self._products @ matrices - 2 * self._overlaps)).sum()
        # Rounding may leave a trace below zero.
        return max(0.0, (inner + self._norm) / self._norm) if self._norm > 0 else 0.0

    def sparsest(self, tolerance, restored):
        """`(stays, matrices)` of the fewest weights that add at most `tolerance` to the error.

        Added to that of all weights, refitted: what the layers before have lost stays lost.
        """
        every = np.ones(self.matrices.shape, bool)
        best = every, self.refitted(every)
        limit = self.error(best[1]) + tolerance
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            sparsity = (low + high) / 2
            stays = self.support(sparsity, restored)
            matrices = self.refitted(stays)
            if self.error(matrices) <= limit:
                low, best = sparsity, (stays, matrices)
            else:
                high = sparsity
        return best

    def support(self, sparsity, restored):
        """Which weights stay: by magnitude, and a share of them by the error without them."""
        size = self.matrices.size
        count = size - masks.drop_count(size, sparsity)
        magnitudes = np.abs(self.matrices)
        plain = masks.keep_largest(magnitudes, size - count)
        number = int(restored * count)
        stays = masks.keep_largest(magnitudes, size - count + number)
        squares = self.matrices**2 * np.diagonal(self._products, axis1=1, axis2=2)[..., None]
        for part in np.array_split(np.arange(number), _ROUNDS):
            # |r|^2 - |r - x w|^2, r being the error without the weights that are gone.
            residual = self._overlaps - self._products @ (self.matrices * stays)
            gains = np.where(stays, -np.inf, 2 * self.matrices * residual - squares)
            stays.flat[np.argsort(-gains, axis=None, kind="stable")[: len(part)]] = True
        # Several at a time are restored, which may make up for the same error twice.
        errors = [self.error(self.matrices * one) for one in (plain, stays)]
        return plain if errors[0] < errors[1] else stays

    def refitted(self, stays):
        """Weights of the least error among those that are zero elsewhere, output by output."""
        matrices = self.matrices * stays
        residual = self._overlaps - self._products @ matrices
        ridged = damped(self._products, self._damping)
        for group, products in enumerate(ridged):
            if stays[group].all():
                matrices[group] += _solved(products, residual[group])
                continue
            for output in range(matrices.shape[-1]):
                there = np.flatnonzero(stays[group, :, output])
                if len(there):
                    matrices[group, there, output] += _solved(
                        products[np.ix_(there, there)], residual[group, there, output]
                    )
        return matrices


def _solved(products, overlaps):
    """Solution of positive definite equations, without the condition number of `solve`."""
    factor = scipy.linalg.cho_factor(products, check_finite=False)
    return scipy.linalg.cho_solve(factor, overlaps, check_finite=False)


class _Products(WeightCriterion):
    """Chooses the kernels whose products with their inputs can be written as matrices."""

    def applies(self, kernel):
        return super().applies(kernel) and isinstance(kernel.layer, _LAYERS)
