"""Ternary: -1, 0 and 1 times a scale."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer
from keras_compress.quantizers.quantizer import or_one


@keras.saving.register_keras_serializable(package="keras_compress")
class Ternary(GridQuantizer):
    """Ternary quantizer of ternary weight networks (TWN): `alpha * sign(w) * 1[|w| > delta]`.

    `delta = threshold * mean|w|`, which for weights of a bell shape is close to the optimum (or,
    with `relative=False`, `threshold` itself), and `alpha = mean(|w| : |w| > delta)`, the best
    scale for that `delta` in the L2 sense.

    In a .tflite dense and 1x1 kernels are native int2 tensors, exact, 16 times smaller than
    float32; with `to_tflite(optimize_for="size")` they take 1.6 bits a weight.

    Args:
        threshold: Factor of `mean|w|`, not negative. The paper has 0.7, a later revision 0.75.
            With `relative=False` the bound itself: 0.5 and `scale=None` round to -1, 0 and 1.
        scale: `"mean_kept"` (alpha), or `None` for levels -1, 0 and 1.
        axis: What has a threshold and a scale of its own: the tensor (`None`, as in the paper),
            or each output channel (-1).
        ste: Straight-through gradient, `"identity"` (as in the paper) or `"clip"`.
        relative: Whether `threshold` is in units of `mean|w|`.

    Raises:
        ValueError: if an argument is not one of these.

    Reference:
        Li, Zhang, Liu, "Ternary Weight Networks", 2016.

    Example:

    >>> codes = Ternary().encode([1.0, -1.0, 0.1, -0.1])
    >>> codes.ints.tolist(), float(codes.scale)
    ([1, -1, 0, 0], 1.0)
    """

    gradients = ("identity", "clip")
    limits = (-1, 1)
    bits = 2

    def __init__(self, threshold=0.7, scale="mean_kept", axis=None, ste="identity", relative=True):
        super().__init__(ste, axis)
        self.threshold = validation.number("threshold", threshold, low=0, owner=self)
        self.scale = validation.one_of("scale", scale, (None, "mean_kept"), self)
        self.relative = bool(relative)

    @property
    def step(self):
        return 1.0 if self.scale is None else None

    def _kept(self, w):
        magnitudes = ops.abs(w)
        delta = self.threshold
        if self.relative:
            delta = ops.multiply(delta, self.mean(magnitudes))
        return ops.cast(ops.greater(magnitudes, delta), w.dtype)

    def integers(self, w, scales, training=None):
        return ops.multiply(ops.sign(w), self._kept(w))

    def scales(self, w):
        if self.scale is None:
            return super().scales(w)
        kept = self._kept(w)
        # A threshold above every weight keeps none.
        count = ops.maximum(self.sum(kept), 1.0)
        return or_one(ops.divide(self.sum(ops.multiply(kept, ops.abs(w))), count))

    def get_config(self):
        return {
            "threshold": self.threshold,
            "scale": self.scale,
            "axis": self.axis,
            "relative": self.relative,
            **super().get_config(),
        }
