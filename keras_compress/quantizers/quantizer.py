"""Quantizer: the interface of everything that maps a tensor to a few values."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress import validation

STE = ("identity", "clip", "scaled")


@keras.saving.register_keras_serializable(package="keras_compress")
class Quantizer:
    """Base of quantizers: a map of a tensor to few values, with a straight-through gradient.

    A quantizer is given to layers as `kernel_quantizer=` or `input_quantizer=`, or called on any
    tensor. The forward pass gives the quantised values, bit for bit; the backward pass (the
    straight-through estimator, STE) gives, for an incoming gradient `g`,

    - `ste="identity"`: `g`;
    - `ste="clip"`: `g` where `|w| <= 1`, else 0, so that saturated values stop moving;
    - `ste="scaled"`: `g * (1/n + scale * 1[|w| <= 1])`, XNOR-Net's formula, with `n` the number of
      values that share a scale. It needs a quantizer that has scales.

    A subclass writes `quantize`, `encode`, `levels` and `bits`, and `scales` where it has any; one
    whose levels are integers times a step does better to start from `GridQuantizer`.

    Args:
        ste: `"identity"`, `"clip"` or `"scaled"`.
        axis: What has a scale of its own: each output channel of a kernel (-1), each sample of a
            batch (0), or the tensor as a whole (`None`). Without scales it means nothing.

    Raises:
        ValueError: if `ste` or `axis` is none of these.
    """

    #: The straight-through gradients that the class offers.
    gradients = STE

    def __init__(self, ste="identity", axis=None):
        self.ste = validation.one_of("ste", ste, self.gradients, self)
        self.axis = validation.one_of("axis", axis, (None, -1, 0), self)

    def __call__(self, w, training=None):
        """Returns the quantised tensor.

        Args:
            w: Tensor of floats.
            training: Whether random quantizers draw; `None` and `False` are deterministic.
        """
        w = ops.convert_to_tensor(w)
        # In float32: half precision has fewer values than some grids. The gradient is stopped at
        # the input already, since a loop inside of `quantize` may have none.
        exact = ops.cast(ops.stop_gradient(w), "float32")
        quantized = ops.cast(self.quantize(exact, training), w.dtype)
        passed = self._passed(w)
        # `w + stop_gradient(q - w)` would round: the zero added here leaves q exact.
        return ops.add(quantized, ops.subtract(passed, ops.stop_gradient(passed)))

    def _passed(self, w):
        """A function of `w` whose gradient is the straight-through one."""
        if self.ste == "identity":
            return w
        # Masked, not clipped: JAX halves the gradient of clip at the bound, where latent weights
        # gather. The comparison lets a NaN through, so that diverged weights show.
        inside = ops.where(ops.greater(ops.abs(w), 1.0), ops.cast(0.0, w.dtype), w)
        if self.ste == "clip":
            return inside
        scales = ops.stop_gradient(self.scales(w))
        shared = math.prod(w.shape) // math.prod(scales.shape)
        return ops.add(ops.divide(w, shared), ops.multiply(scales, inside))

    @property
    def bits(self):
        """Bits of one quantised value."""
        raise NotImplementedError

    @property
    def state(self):
        """Variables and seed generators, to be tracked by the layer that uses the quantizer."""
        return []

    def quantize(self, w, training=None):
        """Returns the quantised float32 tensor of a float32 tensor; its gradient is not used."""
        raise NotImplementedError

    def scales(self, w):
        """Tensor of the scales, with as many axes as `w`, or `None` if there are none."""
        return None

    def scale_count(self, shape):
        """Number of scales that are stored with a tensor of this shape."""
        return 0

    def mean(self, values):
        """Mean of `values` over all that share a scale, axes kept."""
        return ops.mean(values, axis=self._shared_axes(values), keepdims=True)

    def sum(self, values):
        """Sum of `values` over all that share a scale, axes kept."""
        return ops.sum(values, axis=self._shared_axes(values), keepdims=True)

    def max(self, values):
        """Maximum of `values` over all that share a scale, axes kept."""
        return ops.max(values, axis=self._shared_axes(values), keepdims=True)

    def _shared_axes(self, values):
        own = None if self.axis is None else self.axis % len(values.shape)
        return tuple(axis for axis in range(len(values.shape)) if axis != own)

    def _groups(self, shape):
        """How many parts of a tensor have a scale of their own."""
        return 1 if self.axis is None else shape[self.axis]

    def latent(self, kernel):
        """Latent weights to start from a trained kernel: itself, if levels follow its range.

        Args:
            kernel: numpy array.
        """
        return kernel

    def levels(self, w):
        """Values that the quantised `w` may take.

        Returns:
            Array `(channels, levels)`, ascending; `channels` is 1 where all share their levels.
        """
        raise NotImplementedError

    def encode(self, w):
        """Returns the `Codes` of a tensor (deterministic)."""
        raise NotImplementedError

    def decode(self, codes):
        """Returns the float32 array that `codes` stand for."""
        return codes.decode()

    def storage_bits(self, shape):
        """Bits of the stored form of a tensor: packed codes, and 32 for each scale."""
        return math.prod(shape) * self.bits + 32 * self.scale_count(shape)

    def copy(self):
        """A quantizer of the same configuration, with a random state of its own."""
        return type(self).from_config(self.get_config())

    def get_config(self):
        return {"ste": self.ste}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def in_unit_interval(kernel):
    """A trained kernel divided by `max|kernel|`: one factor, so that all signs and ratios stay.

    Latent weights for quantizers whose levels are fixed in [-1, 1].
    """
    return kernel / max(np.abs(kernel).max(), np.finfo("float32").tiny)


def or_one(scale):
    """Scales with 1 in place of 0: a tensor of zeros has no scale of its own, and any will do."""
    return ops.where(ops.equal(scale, 0.0), ops.ones_like(scale), scale)
