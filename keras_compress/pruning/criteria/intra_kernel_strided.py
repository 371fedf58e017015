"""`IntraKernelStrided`: within a filter, every n-th position stays."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion


class IntraKernelStrided(WeightCriterion):
    """Keeps, of each input feature map, the positions `offset + stride * n` of the filters.

    Positions of a filter are counted row by row. All filters keep the same ones of an input map, so
    that the lowered form of the convolution (im2col) loses whole rows of its matrix, and is a dense
    product with about `1 / stride` of them. The offset is that under which the largest sum of
    magnitudes stays, by input map. Weights that stay are scored by their mean magnitude over the
    outputs, others by 0; the criterion chooses how many go, so `kc.pruning.prune_weights` takes no
    `sparsity` with it.

    For convolutions with more than one position; others are left out.

    Args:
        stride: Integer >= 2.
        offset: `None`, or the offset of all input maps, in [0, stride).
        normalize: See `Criterion`.

    Raises:
        ValueError: for a stride or offset out of range; when called, if a chosen kernel has fewer
            positions than the stride.

    Reference:
        Anwar, Hwang, Sung, "Structured Pruning of Deep Convolutional Neural Networks", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, name="conv")])
    >>> criterion = kc.pruning.criteria.IntraKernelStrided(stride=3, offset=1)
    >>> pruned = kc.pruning.prune_weights(model, criterion)
    >>> (keras.ops.convert_to_numpy(pruned.layers[0].kernel)[:, :, 0, 0] != 0).astype(int)
    array([[0, 1, 0],
           [0, 1, 0],
           [0, 1, 0]])
    """

    chooses = True

    def __init__(self, stride=2, offset=None, normalize="none"):
        super().__init__(normalize)
        self.stride = validation.integer("stride", stride, 2, 2**31, self)
        self.offset = (
            None
            if offset is None
            else validation.integer("offset", offset, 0, self.stride - 1, self)
        )

    def applies(self, kernel):
        return super().applies(kernel) and _positions(kernel) > 1

    def score(self, graph, parts, samples, loss):
        return [self._of_kernel(part) for part in parts]

    def _of_kernel(self, part):
        positions = _positions(part)
        if positions < self.stride:
            raise ValueError(
                f"IntraKernelStrided: the filters of '{part.name}' have {positions} positions, of "
                f"which none can be left out by stride={self.stride}. Choose a stride of at most "
                "that, or other layers."
            )
        kernel = np.abs(keras.ops.convert_to_numpy(part.variable).astype("float32"))
        shape = kernel.shape
        # (positions, input maps, outputs); a transposed convolution has the maps last.
        last = part.output_axes == (-2,)
        kernel = kernel.reshape(positions, *shape[-2:])
        rows = kernel.mean(1 if last else 2)
        combs = np.arange(positions) % self.stride
        sums = np.stack([rows[combs == offset].sum(0) for offset in range(self.stride)])
        best = sums.argmax(0) if self.offset is None else np.full(rows.shape[1], self.offset)
        # A row of zeros in the comb stays all the same: the pattern is what makes the rows regular.
        tiny = np.finfo("float32").tiny
        scores = np.where(combs[:, None] == best, np.maximum(rows, tiny), 0.0)
        scores = scores[:, None, :] if last else scores[:, :, None]
        return np.broadcast_to(scores, kernel.shape).reshape(shape)


def _positions(kernel):
    """Positions of a filter; 1 where the kernel is no convolution's."""
    if not isinstance(kernel.layer, _CONVOLUTIONS) or kernel.attribute == "pointwise_kernel":
        return 1
    return int(np.prod(kernel.variable.shape[:-2]))


_CONVOLUTIONS = tuple(
    getattr(keras.layers, name)
    for name in (
        *(f"Conv{n}D{kind}" for n in (1, 2, 3) for kind in ("", "Transpose")),
        *(f"{kind}Conv{n}D" for n in (1, 2) for kind in ("Depthwise", "Separable")),
    )
)
