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

    A subclass writes `quantize`, `encode`, `levels` and `bits`, and `scales` where it has any.

    Args:
        ste: `"identity"`, `"clip"` or `"scaled"`.

    Raises:
        ValueError: if `ste` is none of these.
    """

    def __init__(self, ste="identity"):
        self.ste = validation.one_of("ste", ste, STE, self)

    def __call__(self, w, training=None):
        """Returns the quantised tensor.

        Args:
            w: Tensor of floats.
            training: Whether random quantizers draw; `None` and `False` are deterministic.
        """
        w = ops.convert_to_tensor(w)
        quantized = ops.stop_gradient(self.quantize(w, training))
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
        """Returns the quantised tensor; its gradient is not used."""
        raise NotImplementedError

    def scales(self, w):
        """Tensor of the scales, with as many axes as `w`, or `None` if there are none."""
        return None

    def scale_count(self, shape):
        """Number of scales that a tensor of this shape needs."""
        return 0

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
        values = codes.ints.astype("float32") if codes.values is None else codes.values[codes.ints]
        scale = np.asarray(codes.scale, "float32")
        if codes.axis is not None:
            shape = [1] * codes.ints.ndim
            shape[codes.axis] = -1
            scale = scale.reshape(shape)
        return (values * scale).astype("float32")

    def storage_bits(self, shape):
        """Bits of the stored form of a tensor: packed codes, and 32 for each scale."""
        return math.prod(shape) * self.bits + 32 * self.scale_count(shape)

    def get_config(self):
        return {"ste": self.ste}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
