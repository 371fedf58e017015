"""`refit`: factors of any form fitted in another measure than the distance of kernels."""

import numpy as np


def refit(factors, metric, target, sweeps=5, steps=10, tolerance=1e-4):
    """Lowers `<W, metric(W)> - 2 <W, target>` over the arrays of `W`, one after another.

    With `metric(W) = S W` and `target = S K` this is `tr (K - W)' S (K - W)` but for a constant, of
    a kernel `K` and inputs of second moment `S`; with `metric(W) = A * A * W` it is the sum of
    `(A * (K - W))^2`. In each array it is a least-squares problem: conjugate gradients from where
    the array is. Every step lowers it, so the result is never worse than the start.

    Args:
        factors: `Factors` to start from.
        metric: Function from an array `(inputs, outputs)`, the kernel as a matrix, to another: a
            symmetric positive semidefinite map.
        target: Array `(inputs, outputs)`.
        sweeps: Most rounds over the arrays.
        steps: Steps of conjugate gradients for an array.
        tolerance: A round that gains less than this share of what the first gained is the last.

    Returns:
        New `Factors` of the same class; its arrays are float64.
    """
    arrays = [
        np.array(a, "float64" if _is_float(a) else a.dtype, order="C") for a in factors.arrays
    ]
    fitted = type(factors)(arrays)
    operands = fitted.operands()
    terms, output = fitted.equation.replace("1", "").split("->")
    terms = terms.split(",")
    problem = _Problem(fitted, metric, target, terms, output)
    first = None
    for _ in range(sweeps):
        gained = sum(problem.update(operands, place, steps) for place in range(len(operands)))
        first = gained if first is None else first
        if gained <= tolerance * first:
            break
    # `operands` are views of the arrays, changed in place.
    return fitted


def _is_float(array):
    return np.asarray(array).dtype.kind not in "iu"


class _Problem:
    def __init__(self, factors, metric, target, terms, output):
        self.factors, self.metric, self.target = factors, metric, target
        self.terms, self.output = terms, output
        self.shape = factors.reconstruct().shape

    def update(self, operands, place, steps):
        """Moves one operand; returns by how much the objective fell."""
        others = [x for n, x in enumerate(operands) if n != place]
        names = [x for n, x in enumerate(self.terms) if n != place]
        forward = ",".join([self.terms[place], *names]) + "->" + self.output
        adjoint = ",".join([self.output, *names]) + "->" + self.terms[place]

        def kernel(operand):
            contracted = np.einsum(forward, operand, *others, optimize=True)
            return self.factors.pack(contracted).reshape(self.target.shape)

        def gradient(matrix):
            contracted = self.factors.unpack(matrix.reshape(self.shape))
            return np.einsum(adjoint, contracted, *others, optimize=True)

        residual = gradient(self.target - self.metric(kernel(operands[place])))
        direction, size, gained = residual, np.vdot(residual, residual), 0.0
        first = size
        for _ in range(steps):
            if size <= 1e-16 * first or size == 0:
                break
            image = gradient(self.metric(kernel(direction)))
            curvature = np.vdot(direction, image)
            if curvature <= 0:
                break
            length = size / curvature
            operands[place] += length * direction
            residual = residual - length * image
            gained += length * size
            before, size = size, np.vdot(residual, residual)
            direction = residual + (size / before) * direction
        return gained
