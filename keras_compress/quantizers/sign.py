"""Sign: one bit a value."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.codes import Codes
from keras_compress.quantizers.quantizer import Quantizer


@keras.saving.register_keras_serializable(package="keras_compress")
class Sign(Quantizer):
    """Binary quantizer: `sign(w)`, with `sign(0) = +1`, times a scale where asked for.

    - `Sign()`: weights and activations of BNN, weights of BinaryConnect.
    - `Sign(stochastic=True)`: in training +1 with probability `clip((w + 1) / 2, 0, 1)`.
    - `Sign("mean_abs")`: weights of XNOR-Net and of binary-weight networks: each output channel
      (last axis) is `alpha * sign(w)` with `alpha = mean|w|`, the best binary approximation in the
      L2 sense.
    - `Sign("mean_abs", ste="scaled")`: the same with XNOR-Net's gradient.

    Args:
        scale: `None` (levels -1 and 1) or `"mean_abs"`.
        stochastic: Whether training draws the sign. Inference never does.
        ste: Straight-through gradient: see `Quantizer`. The scale itself is held constant in it.
        seed: Seed of the draws. Under JAX, use a stochastic quantizer inside of a layer, which
            tracks the generator.

    Raises:
        ValueError: if `scale` or `ste` is unknown, or `ste="scaled"` comes without a scale.

    Reference:
        Courbariaux, Bengio, David, "BinaryConnect: Training Deep Neural Networks with binary
        weights during propagations", 2015.
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016.
        Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net: ImageNet Classification Using Binary
        Convolutional Neural Networks", 2016.

    Example:

    >>> sign = Sign("mean_abs")
    >>> codes = sign.encode([[1.0], [-2.0], [3.0], [-4.0]])
    >>> codes.ints.ravel().tolist(), codes.scale.tolist()
    ([1, -1, 1, -1], [2.5])
    """

    def __init__(self, scale=None, stochastic=False, ste="clip", seed=None):
        super().__init__(ste)
        self.scale = validation.one_of("scale", scale, (None, "mean_abs"), self)
        if self.ste == "scaled" and self.scale is None:
            raise ValueError(
                "Sign: `ste='scaled'` is the gradient of a scaled sign; got scale=None. Give "
                "scale='mean_abs', or use ste='clip'."
            )
        self.stochastic = bool(stochastic)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if self.stochastic else None

    @property
    def bits(self):
        return 1

    @property
    def state(self):
        return [self.seed_generator] if self.stochastic else []

    def quantize(self, w, training=None):
        if self.stochastic and training:
            # Drawn in float32: bfloat16 has too few values in [0, 1) for the probabilities.
            probability = ops.divide(ops.add(ops.cast(w, "float32"), 1.0), 2.0)
            draw = keras.random.uniform(ops.shape(w), dtype="float32", seed=self.seed_generator)
            positive = ops.less(draw, probability)
        else:
            positive = ops.greater_equal(w, 0)
        one = ops.cast(1.0, w.dtype)
        signs = ops.where(positive, one, ops.negative(one))
        return signs if self.scale is None else ops.multiply(self.scales(w), signs)

    def scales(self, w):
        if self.scale is None:
            return None
        return ops.mean(ops.abs(w), axis=tuple(range(len(w.shape) - 1)), keepdims=True)

    def scale_count(self, shape):
        return 0 if self.scale is None else shape[-1]

    def levels(self, w):
        scale = np.atleast_1d(self.encode(w).scale)
        return scale[:, None] * np.array([-1.0, 1.0], "float32")

    def encode(self, w):
        w = ops.convert_to_tensor(w)
        ints = np.where(ops.convert_to_numpy(w) >= 0, 1, -1).astype("int8")
        if self.scale is None:
            return Codes(ints, np.float32(1.0))
        scale = ops.convert_to_numpy(self.scales(w)).astype("float32")
        return Codes(ints, scale.reshape(-1), axis=ints.ndim - 1)

    def get_config(self):
        return {
            "scale": self.scale,
            "stochastic": self.stochastic,
            **super().get_config(),
            "seed": self.seed,
        }
