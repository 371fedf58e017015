"""CPFactors: a kernel as a sum of rank-1 terms, fitted by non-linear least squares."""

import itertools
import math

import numpy as np

from keras_compress.decomposition.factors import Factors, Stage
from keras_compress.decomposition.linalg import gram, leading_eigenvectors, truncated_svd
from keras_compress.decomposition.tucker import hooi

# Steps of the fit, and of the trials that choose where it starts; more where they cost nothing or
# gain most.
_MAX_STEPS = 80
_LARGE_MAX_STEPS = 120
_TRIAL_STEPS = 4
_CHEAP_TRIAL_STEPS = 8
# Entries of the kernel times rank below which a fit costs little, and how many random starts then.
_CHEAP = 200_000
_RANDOM_STARTS = 10
# And above which a fit is long, and starts from that of the kernel's core if this is small.
_LARGE = 1_500_000
# Sweeps of the power method for a rank-1 term of the greedy start.
_POWER_SWEEPS = 10
# Relative decrease of the squared error, in one step, at which more steps are not worth it.
_TOLERANCE = 1e-6
_EXACT = 1e-13
# Where the fit is large, many rough steps get further in the same time than few exact ones.
_CG_STEPS = 8
_CHEAP_CG_STEPS = 20
_CG_TOLERANCE = 1e-2


class CPFactors(Factors):
    """`K[i, j, s, t] ~ sum_r A[i, r] B[j, r] C[s, r] D[t, r]`.

    Runs as a 1x1 convolution to `rank` channels, a (height x 1) and a (1 x width) depthwise
    convolution, and a 1x1 convolution. The four columns of each term have equal norm, which keeps
    fine-tuning stable; fine-tune at a small learning rate.

    Reference:
        Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned
        CP-Decomposition", 2014.
        Sorber, Van Barel, De Lathauwer, "Optimization-based Algorithms for Tensor Decompositions",
        2013 (structured Gauss-Newton).
    """

    form = "cp"
    equation = "11sr,i1r1,1jr1,11rt->ijst"
    stages = (
        Stage("conv", ()),
        Stage("depthwise", (0,)),
        Stage("depthwise", (1,)),
        Stage("conv", ()),
    )

    @classmethod
    def shapes(cls, kernel_shape, rank):
        height, width, inputs, outputs = kernel_shape
        return [(1, 1, inputs, *rank), (height, 1, *rank, 1), (1, width, *rank, 1)] + [
            (1, 1, *rank, outputs)
        ]

    @classmethod
    def limits(cls, kernel_shape):
        others = (kernel_shape[:n] + kernel_shape[n + 1 :] for n in range(4))
        return (min(math.prod(sizes) for sizes in others),)

    @classmethod
    def unfoldings(cls, kernel):
        # The rank of every unfolding is a lower bound of the CP-rank.
        rows = [(n,) for n in range(4)] + [(0, n) for n in range(1, 4)]
        return [[_unfold(kernel, axes) for axes in rows]]

    @classmethod
    def fit(cls, kernel, rank):
        a, b, c, d = (f.astype(kernel.dtype) for f in nonlinear_least_squares(kernel, *rank))
        return cls((c[None, None], a[:, None, :, None], b[None, :, :, None], d.T[None, None]))

    def columns(self):
        """The factor matrices `A, B, C, D`, one column a term."""
        c, a, b, d = self.operands()
        return a, b, c, d.T


def _unfold(kernel, rows):
    columns = [n for n in range(4) if n not in rows]
    size = math.prod(kernel.shape[n] for n in rows)
    return kernel.transpose(*rows, *columns).reshape(size, -1)


def nonlinear_least_squares(kernel, rank):
    """Fits the four factor matrices together, by damped Gauss-Newton (Levenberg-Marquardt).

    Several starts take a few steps each, the best third goes on, and so forth; a large kernel of
    low rank starts from the fit of its Tucker core. The normal equations
    are never formed: the Gram structure of the Khatri-Rao products gives their product with a
    vector, conjugate gradients preconditioned by the blocks of the diagonal do the rest.

    Args:
        kernel: Array `(height, width, inputs, outputs)`.
        rank: Number of terms.

    Returns:
        List of four arrays of shape `(size, rank)`, columns of equal norm in each term.
    """
    kernel = np.asarray(kernel, "float64")
    norm = np.linalg.norm(kernel)
    if norm == 0:
        return [np.zeros((size, rank)) for size in kernel.shape]
    unit = kernel / norm
    start = _core_start(unit, rank) if _has_small_core(kernel, rank) else _best_start(unit, rank)
    state = _State(unit, start)
    state.descend(_LARGE_MAX_STEPS if _is_large(kernel, rank) else _MAX_STEPS)
    return [factor * norm**0.25 for factor in state.factors]


def _is_cheap(kernel, rank):
    return kernel.size * rank < _CHEAP


def _is_large(kernel, rank):
    return kernel.size * rank > _LARGE


def _has_small_core(kernel, rank):
    """Whether a fit of the kernel in its channel bases is much cheaper than one of the kernel."""
    inputs, outputs = kernel.shape[2:]
    core = min(rank, inputs) * min(rank, outputs)
    return _is_large(kernel, rank) and 2 * core <= inputs * outputs


def _core_start(kernel, rank):
    """The fit of what the kernel is in channel bases of that many vectors (HOOI)."""
    inputs, outputs = kernel.shape[2:]
    u, v = hooi(kernel, (min(rank, inputs), min(rank, outputs)))
    core = np.einsum("ijst,sp,tq->ijpq", kernel, u, v, optimize=True)
    a, b, c, d = nonlinear_least_squares(core, rank)
    return [a, b, u @ c, v @ d]


def _best_start(kernel, rank):
    rng, starts, steps = np.random.default_rng(0), [], _TRIAL_STEPS
    # Small problems have poor local minima and cheap steps; large ones neither.
    if _is_cheap(kernel, rank):
        steps = _CHEAP_TRIAL_STEPS
        for _ in range(_RANDOM_STARTS):
            starts.append([rng.normal(size=(size, rank)) for size in kernel.shape])
        starts.append(_greedy_start(kernel, rank))
    starts += [*_split_starts(kernel, rank, rng), _basis_start(kernel, rank, rng)]
    states = [_State(kernel, start) for start in starts]
    while len(states) > 1:
        for state in states:
            state.descend(steps)
        states.sort(key=lambda state: state.squared_error)
        states, steps = states[: max(1, len(states) // 3)], 3 * steps
    return states[0].factors


def _basis_start(kernel, rank, rng):
    """The leading singular vectors of each mode's unfolding, as alternating methods start."""
    factors = []
    for mode in range(4):
        vectors = leading_eigenvectors(gram(_unfold(kernel, (mode,)).T), rank)
        beyond = rng.normal(size=(len(vectors), rank - vectors.shape[1]))
        factors.append(np.hstack([vectors, beyond]))
    return factors


def _greedy_start(kernel, rank):
    """One rank-1 term after another, each fitted to what the others left."""
    rest, terms = kernel, []
    for _ in range(rank):
        terms.append(_rank_one_term(rest))
        a, b, c, d = terms[-1]
        rest = rest - np.outer(a, b)[:, :, None, None] * np.outer(c, d)
    return [np.stack(columns, axis=1) for columns in zip(*terms, strict=True)]


def _rank_one_term(kernel):
    """A rank-1 term near the best one, by the power method: four vectors of equal norm."""
    a, b, c, d = (f[:, 0] for f in _split_start(kernel, 1, np.random.default_rng(0)))
    for _ in range(_POWER_SWEEPS):
        over_channels = (kernel @ d) @ c
        a = _unit(over_channels @ b)
        b = _unit(a @ over_channels)
        over_window = np.tensordot(np.outer(a, b), kernel, 2)
        c = _unit(over_window @ d)
        d = c @ over_window
    size = np.linalg.norm(d)
    return [size**0.25 * vector for vector in (a, b, c, _unit(d))]


def _unit(vector):
    return vector / (np.linalg.norm(vector) or 1.0)


def _split_starts(kernel, rank, rng):
    """The split of the kernel, and that of the kernel with its two channel axes swapped."""
    a, b, d, c = _split_start(kernel.transpose(0, 1, 3, 2), rank, rng)
    return [_split_start(kernel, rank, rng), [a, b, c, d]]


def _split_start(kernel, rank, rng):
    """Singular vectors of the spatial unfolding, each cut to its nearest rank-1 matrix."""
    height, width, inputs, outputs = kernel.shape
    matrix = _unfold(kernel, (0, 2))
    count = min(rank, *matrix.shape)
    left, right = truncated_svd(matrix, count)
    a, c = _rank_one(left.T.reshape(count, height, inputs))
    b, d = _rank_one(right.reshape(count, width, outputs))
    factors = []
    for found in (a, b, c, d):
        # Terms beyond the singular vectors, and modes with nothing in them, start small at random.
        spread = 0.1 * np.sqrt(np.mean(found**2)) or 1.0
        factor = spread * rng.normal(size=(found.shape[1], rank))
        factor[:, :count] += found.T
        factors.append(factor)
    return factors


def _rank_one(matrices):
    u, s, v = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(s[:, :1])
    return u[:, :, 0] * root, v[:, 0] * root


class _State:
    """Factors, their error and gradient, and the damping of the next step."""

    def __init__(self, kernel, factors):
        self.kernel = kernel
        cheap = _is_cheap(kernel, factors[0].shape[1])
        self.cg_steps = _CHEAP_CG_STEPS if cheap else _CG_STEPS
        ends = np.cumsum(kernel.shape)
        self.slices = [slice(e - n, e) for e, n in zip(ends, kernel.shape, strict=True)]
        factors = [f * scale for f, scale in zip(factors, _even_scales(factors), strict=True)]
        # The best common scale: a start of the wrong size wastes steps.
        products = _mttkrp(kernel, factors)
        model = _hadamard([f.T @ f for f in factors]).sum()
        scale = max(np.vdot(products[0], factors[0]) / model, 1e-6) if model > 0 else 1.0
        self._move([f * scale**0.25 for f in factors])
        self.damping = 1e-2 * max(np.trace(g) for g in self.hessians) / factors[0].shape[1]
        self.growth = 2.0

    def _move(self, factors):
        self.factors = factors
        self.products = _mttkrp(self.kernel, factors)
        self.grams = [f.T @ f for f in factors]
        self.hessians = [_hadamard(self.grams, (n,)) for n in range(4)]
        fitted = np.vdot(self.products[3], factors[3])
        self.squared_error = max(1.0 - 2.0 * fitted + _hadamard(self.grams).sum(), 0.0)

    def _even_columns(self):
        """Moves scale between the columns of each term: even columns condition best."""
        scales = _even_scales(self.factors)
        self.factors = [f * scale for f, scale in zip(self.factors, scales, strict=True)]
        self.products = [p * _hadamard(scales, (n,)) for n, p in enumerate(self.products)]
        self.grams = [f.T @ f for f in self.factors]
        self.hessians = [_hadamard(self.grams, (n,)) for n in range(4)]

    def descend(self, steps):
        """Takes up to `steps` steps, fewer once they are not worth it."""
        stalled = 0
        for _ in range(steps):
            before = self.squared_error
            if before < _EXACT:
                return
            accepted = self._step()
            small = before - self.squared_error <= _TOLERANCE * before
            stalled = stalled + 1 if small and accepted else 0
            if stalled == 3 or self.growth > 1e6:
                return

    def _step(self):
        gradient = np.concatenate(
            [f @ h - p for f, h, p in zip(self.factors, self.hessians, self.products, strict=True)]
        )
        step = self._solve(-gradient)
        # What the linearised model promises, half of it the damping's share.
        promised = np.vdot(step, self.damping * step - gradient)
        saved = dict(vars(self))
        self._move([f + step[s] for f, s in zip(self.factors, self.slices, strict=True)])
        ratio = (saved["squared_error"] - self.squared_error) / promised if promised > 0 else -1.0
        if not ratio > 0:
            vars(self).update(saved)
            self.damping *= self.growth
            self.growth *= 2.0
            return False
        self._even_columns()
        self.damping *= max(1.0 / 3.0, 1.0 - (2.0 * ratio - 1.0) ** 3)
        self.growth = 2.0
        return True

    def _solve(self, target):
        """Preconditioned conjugate gradients on `(J^T J + damping) step = target`."""
        identity = np.eye(target.shape[1])
        inverses = [np.linalg.inv(h + self.damping * identity) for h in self.hessians]
        pairs = self._pairs()
        step = np.zeros_like(target)
        residual = target.copy()
        direction = ready = self._blocks(residual, inverses)
        size = np.vdot(residual, ready)
        goal = _CG_TOLERANCE**2 * size
        for _ in range(self.cg_steps):
            image = self._normal_product(direction, pairs)
            length = size / np.vdot(direction, image)
            step += length * direction
            residual -= length * image
            ready = self._blocks(residual, inverses)
            before, size = size, np.vdot(residual, ready)
            if size <= goal:
                break
            direction = ready + (size / before) * direction
        return step

    def _blocks(self, stacked, matrices):
        product = np.empty_like(stacked)
        for place, matrix in zip(self.slices, matrices, strict=True):
            np.matmul(stacked[place], matrix, out=product[place])
        return product

    def _pairs(self):
        """For each two modes the product of the other modes' Gram matrices, zero for one mode."""
        pairs = np.zeros((4, 4, *self.grams[0].shape))
        for n, m in itertools.permutations(range(4), 2):
            pairs[n, m] = _hadamard(self.grams, (n, m))
        return pairs

    def _normal_product(self, stacked, pairs):
        crossed = np.empty(pairs.shape[1:])
        for n, (place, factor) in enumerate(zip(self.slices, self.factors, strict=True)):
            np.matmul(stacked[place].T, factor, out=crossed[n])
        mixed = np.einsum("nmrq,mrq->nrq", pairs, crossed)
        image = self._blocks(stacked, self.hessians)
        for place, factor, matrix in zip(self.slices, self.factors, mixed, strict=True):
            image[place] += factor @ matrix
        image += self.damping * stacked
        return image


def _hadamard(grams, without=()):
    product = 1.0
    for n, one in enumerate(grams):
        if n not in without:
            product = product * one
    return product


def _mttkrp(kernel, factors):
    """For each mode the unfolded kernel times the Khatri-Rao product of the other factors.

    Two matrix products with the large modes serve all four.
    """
    a, b, c, d = factors
    height, width, inputs, outputs = kernel.shape
    flat = kernel.reshape(-1, outputs)
    over_outputs = (flat @ d).reshape(height, width, inputs, -1)
    over_width = np.einsum("ijsr,jr->isr", over_outputs, b)
    over_height = np.einsum("ijsr,ir->jsr", over_outputs, a)
    others = (a[:, None, None] * b[None, :, None] * c).reshape(flat.shape[0], -1)
    return [
        np.einsum("isr,sr->ir", over_width, c),
        np.einsum("jsr,sr->jr", over_height, c),
        np.einsum("isr,ir->sr", over_width, a),
        flat.T @ others,
    ]


def _even_scales(factors):
    """Scales of the columns that give those of each term equal norm; their product is 1."""
    norms = np.array([np.linalg.norm(f, axis=0) for f in factors])
    target = np.prod(norms, axis=0) ** 0.25
    return target / np.where(norms > 0, norms, 1.0)
