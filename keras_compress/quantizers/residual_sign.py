"""ResidualSign: a sum of scaled sign tensors, each of what the ones before left over."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.codes import Codes
from keras_compress.quantizers.quantizer import Quantizer


@keras.saving.register_keras_serializable(package="keras_compress")
class ResidualSign(Quantizer):
    """High-order binary approximation: `w ~ sum_j a_j B_j`, with each `B_j` in {-1, 1}.

    `R_1 = w`; `B_j = sign(R_j)`, `a_j = mean|R_j|`, `R_(j+1) = R_j - a_j B_j`. With `refine=True`
    all `a` are solved for by least squares, `(B^T B)^-1 B^T w`, after each new `B_j`, and the
    residual is taken anew. The forms of the literature:

    - Weights of Network Sketching: `ResidualSign(order)` (direct) and
      `ResidualSign(order, refine=True)` (refined), the scales of each filter its own.
    - Inputs of HORQ: `input_quantizer=ResidualSign(order=2, axis=0, ste="clip")`, the scales of
      each sample its own.

    A filter has at most `2^order` values. In a .tflite they are the nearest int8 (for one order,
    int2, exactly).

    Args:
        order: Number of sign tensors, from 1 to 8.
        refine: Whether the scales are solved for by least squares.
        axis: What has scales of its own: each output channel (-1), each sample of a batch (0), or
            the tensor (`None`).
        ste: Straight-through gradient, `"identity"` or `"clip"`. The scales are constant in it.

    Raises:
        ValueError: if an argument is not one of these.

    Reference:
        Guo, Yao, Zhao, Chen, "Network Sketching: Exploiting Binary Structure in Deep CNNs", 2017.
        Li, Ni, Zhang, Yang, Gao, "Performance Guaranteed Network Acceleration via High-Order
        Residual Quantization", 2017.

    Example:

    >>> ResidualSign(2, axis=None).levels([1.0, -2.0, 3.0, -4.0]).tolist()
    [[-3.5, -1.5, 1.5, 3.5]]
    """

    gradients = ("identity", "clip")

    def __init__(self, order=2, refine=False, axis=-1, ste="identity"):
        super().__init__(ste, axis)
        self.order = validation.integer("order", order, 1, 8, self)
        self.refine = bool(refine)

    @property
    def bits(self):
        return self.order

    def scale_count(self, shape):
        return self.order * self._groups(shape)

    def quantize(self, w, training=None):
        signs, scales = self._expand(w)
        return sum(ops.multiply(a, b) for a, b in zip(scales, signs, strict=True))

    def _expand(self, w):
        """Lists of the sign tensors and of their scales, axes kept."""
        return self._refined(w) if self.refine else self._direct(w)

    def _direct(self, w):
        signs, scales, rest = [], [], w
        for _ in range(self.order):
            signs.append(ops.where(ops.greater_equal(rest, 0.0), 1.0, -1.0))
            scales.append(self.mean(ops.abs(rest)))
            rest = ops.subtract(rest, ops.multiply(scales[-1], signs[-1]))
        return signs, scales

    def _refined(self, w):
        # Least squares by Gram-Schmidt: of a new sign tensor only the part orthogonal to the
        # earlier ones changes the residual. `basis` holds these parts as (tensor, square of its
        # length, coefficients that make it of the sign tensors).
        signs, scales, basis, rest = [], [], [], w
        one, nothing = ops.ones_like(self.mean(w)), ops.zeros_like(self.mean(w))
        for _ in range(self.order):
            signs.append(ops.where(ops.greater_equal(rest, 0.0), 1.0, -1.0))
            new, made_of = signs[-1], [*(nothing for _ in basis), one]
            for vector, square, parts in basis:
                along = ops.divide(self.sum(ops.multiply(new, vector)), square)
                new = ops.subtract(new, ops.multiply(along, vector))
                for i, part in enumerate(parts):
                    made_of[i] = ops.subtract(made_of[i], ops.multiply(along, part))
            square = self.sum(ops.square(new))
            # A sign tensor that the earlier ones make up, but for rounding, adds nothing.
            adds = ops.greater(square, ops.multiply(1e-5, self.sum(ops.ones_like(w))))
            square = ops.where(adds, square, one)
            length = ops.where(adds, ops.divide(self.sum(ops.multiply(rest, new)), square), nothing)
            rest = ops.subtract(rest, ops.multiply(length, new))
            scales = [
                ops.add(scale, ops.multiply(length, part))
                for scale, part in zip([*scales, nothing], made_of, strict=True)
            ]
            basis.append((new, square, made_of))
        return signs, scales

    def _table(self, scales):
        """Values of all sign patterns: `(channels, 2^order)`; bit j of the index is sign j."""
        scales = [ops.convert_to_numpy(a).reshape(-1, 1) for a in scales]
        pattern = np.arange(2**self.order)
        signs = [np.where(pattern >> j & 1, 1, -1).astype("float32") for j in range(self.order)]
        return sum(a * b for a, b in zip(scales, signs, strict=True))

    def levels(self, w):
        return np.sort(self._table(self._expand(ops.cast(w, "float32"))[1]), axis=1)

    def encode(self, w):
        signs, scales = self._expand(ops.cast(w, "float32"))
        bits = [ops.convert_to_numpy(b) > 0 for b in signs]
        ints = sum(b.astype("uint8") << j for j, b in enumerate(bits))
        axis = None if self.axis is None else self.axis % ints.ndim
        table = self._table(scales)
        return Codes(ints, np.float32(1.0), axis, table[0] if axis is None else table)

    def get_config(self):
        return {
            "order": self.order,
            "refine": self.refine,
            "axis": self.axis,
            **super().get_config(),
        }
