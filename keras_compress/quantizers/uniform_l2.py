"""UniformL2: a uniform grid whose step minimises the squared error."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer
from keras_compress.quantizers.quantizer import or_one


@keras.saving.register_keras_serializable(package="keras_compress")
class UniformL2(GridQuantizer):
    """Uniform quantizer of M levels: `sgn(w) step min(floor(|w|/step + 1/2), (M - 1)/2)`.

    The step is fitted to the squared error as in Lloyd's algorithm: with the integers
    `z = Q(w)/step` held, the best step is `sum(w z) / sum(z^2)`; with the step held, the best
    integers are the nearest; until both are stable. It starts from the best of seven steps, around
    the one for normal weights. Large weights saturate, which costs less than a coarse grid for all:
    where `Uniform` has few bits, this one is closer.

    The fit runs in each training step, over the whole kernel: some 15 passes with 3 levels, up to
    37 with many.

    Args:
        levels: Number of levels M, odd, from 3 (ternary) to 255.
        axis: What has a step of its own: the tensor (`None`, as in the paper), each output channel
            (-1), or each sample of a batch (0).
        ste: Straight-through gradient, `"identity"` (as in the paper) or `"clip"`.
        step: A positive step to use in place of the fitted one, as `SearchStep` finds it; only for
            `axis=None`. It stays as it is in training.

    Raises:
        ValueError: if an argument is not one of these.

    Reference:
        Hwang, Sung, "Fixed-point feedforward deep neural network design using weights +1, 0, and
        -1", 2014.

    Example:

    >>> codes = UniformL2(3).encode([0.9, -1.1, 0.1, 0.2])
    >>> codes.ints.tolist(), round(float(codes.scale), 6)
    ([1, -1, 0, 0], 1.0)
    """

    gradients = ("identity", "clip")
    #: Passes after which a fit ends that still moves a weight or two.
    max_passes = 30

    def __init__(self, levels=3, axis=None, ste="identity", step=None):
        super().__init__(ste, axis)
        levels_ = validation.integer("levels", levels, 3, 255, self)
        if levels_ % 2 == 0:
            raise ValueError(
                f"UniformL2: `levels` must be odd, as many below zero as above; got "
                f"levels={levels}. Try {levels - 1} or {levels + 1}."
            )
        self.level_count = levels_
        if step is not None:
            step = validation.number(
                "step", step, 0, math.inf, low_open=True, high_open=True, owner=self
            )
            if self.axis is not None:
                raise ValueError(
                    "UniformL2: `step` is one for the whole tensor; got "
                    f"step={step} with axis={axis}. Use axis=None."
                )
        self.step = step

    @property
    def bits(self):
        return math.ceil(math.log2(self.level_count))

    @property
    def limits(self):
        largest = (self.level_count - 1) // 2
        return (-largest, largest)

    def integers(self, w, scales, training=None):
        magnitudes = ops.floor(ops.add(ops.divide(ops.abs(w), scales), 0.5))
        return ops.multiply(ops.sign(w), ops.minimum(magnitudes, float(self.limits[1])))

    def scales(self, w):
        if self.step is not None:
            return super().scales(w)

        def improve(_, step):
            integers = self.integers(w, step)
            fitted = ops.divide(
                self.sum(ops.multiply(w, integers)),
                ops.maximum(self.sum(ops.square(integers)), 1.0),
            )
            # A step so large that every weight rounds to zero is left as it is.
            return step, ops.where(ops.greater(fitted, 0.0), fitted, step)

        def unstable(before, step):
            return ops.any(ops.not_equal(before, step))

        start = self._first_step(w)
        return ops.while_loop(
            unstable, improve, (ops.zeros_like(start), start), maximum_iterations=self.max_passes
        )[1]

    def _first_step(self, w):
        """The best of a few steps around that for normal weights, and the one that clips none."""
        deviation = ops.sqrt(self.mean(ops.square(w)))
        # Asymptotically: Hui and Neuhoff, 2001.
        normal = 4 * math.sqrt(math.log(self.level_count)) / self.level_count
        best = or_one(ops.divide(self.max(ops.abs(w)), float(self.limits[1])))
        error = self._error(w, best)
        for factor in (0.7, 0.8, 0.9, 1.0, 1.25, 1.5):
            step = or_one(ops.multiply(factor * normal, deviation))
            candidate = self._error(w, step)
            closer = ops.less(candidate, error)
            best, error = ops.where(closer, step, best), ops.where(closer, candidate, error)
        return best

    def _error(self, w, step):
        rounded = ops.multiply(step, self.integers(w, step))
        return self.sum(ops.square(ops.subtract(w, rounded)))

    def get_config(self):
        config = {"levels": self.level_count, "axis": self.axis, "step": self.step}
        return {**config, **super().get_config()}
