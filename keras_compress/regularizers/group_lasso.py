"""`GroupLasso`: a penalty under which whole filters, channels, shapes or blocks become zero."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation

#: From small groups to large: in this order one proximal step after the other is exact for groups
#: that lie within each other.
GROUPS = ("weight", "shape", "block", "filter", "columns", "channel", "rows", "depth")


@keras.saving.register_keras_serializable(package="keras_compress")
class GroupLasso(keras.regularizers.Regularizer):
    """Group lasso: `strength * sum over groups of sqrt(size) * ||weights of the group||_2`.

    As `kernel_regularizer=` it adds the penalty to the loss, which makes groups small. Add
    `kc.callbacks.ProximalGroupLasso()` to `fit` to have the penalty act as a proximal step instead,
    which makes groups exactly zero.

    Args:
        groups: What makes a group of a kernel `(..., inputs, outputs)`: `"filter"` (all weights of
            an output), `"channel"` (all weights of an input), `"shape"` (one position of the
            filters, over all outputs), `"depth"` (the whole kernel), `"rows"` / `"columns"` of a
            dense kernel, `"block"` of the kernel seen as a matrix (inputs, outputs), or `"weight"`
            (each alone: the lasso). A tuple of these adds up their penalties; `("weight",
            "filter")` is the sparse group lasso.
        strength: Number >= 0, or one for each of `groups`.
        scale_by_size: Whether norms are multiplied by the square root of the group's size, so that
            groups of all sizes are pressed alike.
        block_size: `(rows, columns)`, for `"block"`.

    Reference:
        M. Yuan, Y. Lin, "Model selection and estimation in regression with grouped variables",
        2006. W. Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> penalty = kc.regularizers.GroupLasso("rows", strength=0.1, scale_by_size=False)
    >>> print(round(float(penalty(keras.ops.array([[3.0, 4.0], [0.0, 0.0]]))), 3))
    0.5
    """

    def __init__(self, groups="filter", strength=0.01, scale_by_size=True, block_size=None):
        self.groups = (groups,) if isinstance(groups, str) else tuple(groups)
        for name in self.groups:
            validation.one_of("groups", name, GROUPS, self)
        if not self.groups or len(set(self.groups)) < len(self.groups):
            raise ValueError(f"GroupLasso: name each of `groups` once; got groups={groups!r}.")
        self.strength = self._strengths(strength)
        self.scale_by_size = bool(scale_by_size)
        if ("block" in self.groups) != (block_size is not None):
            raise ValueError(
                "GroupLasso: groups='block' needs `block_size=(rows, columns)`, and only it takes "
                f"one; got groups={groups!r}, block_size={block_size!r}."
            )
        self.block_size = block_size and validation.positive_ints("block_size", block_size, self)
        if self.block_size and len(self.block_size) != 2:
            raise ValueError(
                f"GroupLasso: `block_size` is (rows, columns); got block_size={block_size!r}."
            )

    def _strengths(self, strength):
        given = tuple(strength) if np.iterable(strength) else (strength,) * len(self.groups)
        if len(given) != len(self.groups):
            raise ValueError(
                "GroupLasso: `strength` must be one number or one for each of `groups`; got "
                f"groups={self.groups}, strength={strength!r}."
            )
        return tuple(validation.number("strength", s, 0, owner=self) for s in given)

    def __call__(self, weight):
        total = 0.0
        for name, strength in zip(self.groups, self.strength, strict=True):
            grouped, axes, scale, _ = self._grouped(name, weight)
            squares = ops.sum(ops.square(grouped), axes)
            # The square root has no slope at 0; a group there gets the subgradient 0.
            live = ops.greater(squares, 0.0)
            norms = ops.where(live, ops.sqrt(ops.where(live, squares, 1.0)), 0.0)
            total = total + strength * ops.sum(norms * scale)
        return total

    def proximal(self, weight, step):
        """The proximal operator: `argmin_v ||v - weight||^2 / 2 + step * penalty(v)`.

        Each group is shortened by `step * strength * sqrt(size)`, or becomes exactly zero if it was
        shorter. Several kinds of groups are taken one after the other, small ones first: exact
        where groups lie within each other, as in the sparse group lasso; for groups that cross
        (`"filter"` and `"channel"`) it is one alternating pass.

        Args:
            weight: Tensor.
            step: Number or scalar tensor; the learning rate in training.

        Returns:
            Tensor of the same shape and dtype.
        """

        def factor(norms, scale, strength):
            threshold = ops.cast(step, norms.dtype) * (strength * scale)
            return 1.0 - threshold / ops.maximum(norms, 1e-30)

        return self._scale_groups(weight, factor)

    def without_small_groups(self, weight, share):
        """Sets groups to zero whose root mean square is at most `share` of the largest one's.

        Args:
            weight: Tensor.
            share: Number in [0, 1).

        Returns:
            Tensor of the same shape and dtype.
        """

        def factor(norms, scale, strength):
            sizes = norms / scale
            return ops.cast(ops.greater(sizes, share * ops.max(sizes)), norms.dtype)

        return self._scale_groups(weight, factor)

    def _scale_groups(self, weight, factor):
        """Multiplies each group by `factor(norms, sqrt of sizes, strength)`, or makes it zero."""
        dtype = keras.backend.standardize_dtype(weight.dtype)
        order = sorted(zip(self.groups, self.strength, strict=True), key=_size_order)
        for name, strength in order:
            grouped, axes, scale, restore = self._grouped(name, weight)
            norms = ops.sqrt(ops.sum(ops.square(grouped), axes, keepdims=True))
            if np.ndim(scale):
                scale = np.expand_dims(scale, axes)
            factors = factor(norms, scale, strength)
            weight = restore(ops.where(ops.greater(factors, 0.0), grouped * factors, 0.0))
        return ops.cast(weight, dtype)

    def _grouped(self, name, weight):
        """`(tensor, axes that a group runs over, sqrt of group sizes, way back)`."""
        weight = ops.convert_to_tensor(weight)
        if keras.backend.standardize_dtype(weight.dtype) != "float64":
            weight = ops.cast(weight, "float32")
        shape, rank = tuple(weight.shape), len(weight.shape)
        if name == "block":
            return self._blocks(weight)
        if rank < 2 or (name in ("rows", "columns") and rank != 2):
            raise ValueError(
                f"GroupLasso: groups={name!r} needs a kernel with "
                f"{'2' if name in ('rows', 'columns') else '2 or more'} axes; got shape {shape}. "
                "For convolutions, 'channel' and 'filter' are what 'rows' and 'columns' are for "
                "dense kernels."
            )
        axes = {
            "weight": (),
            "shape": (rank - 1,),
            "filter": tuple(range(rank - 1)),
            "columns": (0,),
            "channel": (*range(rank - 2), rank - 1),
            "rows": (1,),
            "depth": tuple(range(rank)),
        }[name]
        if name == "weight":
            weight, axes = weight[..., None], (rank,)
        size = np.prod([shape[axis] for axis in axes if axis < rank])
        scale = float(np.sqrt(size)) if self.scale_by_size else 1.0
        return weight, axes, scale, (lambda w: w[..., 0]) if name == "weight" else (lambda w: w)

    def _blocks(self, weight):
        shape, (height, width) = tuple(weight.shape), self.block_size
        columns = shape[-1]
        rows = int(np.prod(shape[:-1]))
        tall, wide = -(-rows // height), -(-columns // width)
        padding = ((0, tall * height - rows), (0, wide * width - columns))
        matrix = ops.pad(ops.reshape(weight, (rows, columns)), padding)
        sizes = np.outer(
            np.minimum(height, rows - height * np.arange(tall)),
            np.minimum(width, columns - width * np.arange(wide)),
        )
        scale = np.sqrt(sizes).astype("float32") if self.scale_by_size else 1.0

        def restore(blocks):
            matrix = ops.reshape(blocks, (tall * height, wide * width))
            return ops.reshape(matrix[:rows, :columns], shape)

        return ops.reshape(matrix, (tall, height, wide, width)), (1, 3), scale, restore

    def get_config(self):
        return {
            "groups": self.groups,
            "strength": self.strength,
            "scale_by_size": self.scale_by_size,
            "block_size": self.block_size,
        }


def _size_order(pair):
    return GROUPS.index(pair[0])
