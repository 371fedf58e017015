"""Sign: one bit a value."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer
from keras_compress.quantizers.quantizer import in_unit_interval


@keras.saving.register_keras_serializable(package="keras_compress")
class Sign(GridQuantizer):
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
        super().__init__(ste, axis=None if scale is None else -1)
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

    @property
    def step(self):
        return 1.0 if self.scale is None else None

    limits = (-1, 1)

    @property
    def grid(self):
        return np.array([-1, 1])

    def integers(self, w, scales, training=None):
        if self.stochastic and training:
            draw = keras.random.uniform(ops.shape(w), dtype="float32", seed=self.seed_generator)
            positive = ops.less(draw, ops.divide(ops.add(w, 1.0), 2.0))
        else:
            positive = ops.greater_equal(w, 0)
        return ops.where(positive, 1.0, -1.0)

    def scales(self, w):
        return super().scales(w) if self.scale is None else self.mean(ops.abs(w))

    def latent(self, kernel):
        return in_unit_interval(kernel) if self.scale is None else kernel

    def get_config(self):
        return {
            "scale": self.scale,
            "stochastic": self.stochastic,
            **super().get_config(),
            "seed": self.seed,
        }
