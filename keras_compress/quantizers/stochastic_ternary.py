"""StochasticTernary: a draw of -1, 0 or 1 whose mean is the weight."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer
from keras_compress.quantizers.quantizer import in_unit_interval


@keras.saving.register_keras_serializable(package="keras_compress")
class StochasticTernary(GridQuantizer):
    """Ternary connect: in training, `sign(w)` with probability `min(|w|, 1)`, else 0.

    The mean of the draws is the latent weight, which lives in [-1, 1]: use it with
    `kernel_constraint=kc.quantizers.WeightClip()`. Products with the drawn weights need no
    multiplication, which is what training on special hardware saves.

    Inference does not draw. `inference="ternary"` rounds: `sign(w) * 1[|w| > 1/2]`.
    `inference="latent"` uses the mean of the draws, the latent weights themselves, rounded to the
    8-bit grid `k / 127` that they are stored on.

    Args:
        inference: `"ternary"` or `"latent"`.
        ste: Straight-through gradient, `"identity"` or `"clip"`.
        seed: Seed of the draws. Under JAX, use a stochastic quantizer inside of a layer, which
            tracks the generator.

    Raises:
        ValueError: if an argument is not one of these.

    Reference:
        Lin, Courbariaux, Memisevic, Bengio, "Neural Networks with Few Multiplications", 2015.

    Example:

    >>> StochasticTernary().encode([-0.9, 0.2, 0.6]).ints.tolist()
    [-1, 0, 1]
    """

    gradients = ("identity", "clip")

    def __init__(self, inference="ternary", ste="identity", seed=None):
        super().__init__(ste)
        self.inference = validation.one_of("inference", inference, ("ternary", "latent"), self)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def bits(self):
        return 2 if self.inference == "ternary" else 8

    @property
    def state(self):
        return [self.seed_generator]

    @property
    def limits(self):
        largest = 1 if self.inference == "ternary" else 127
        return (-largest, largest)

    @property
    def step(self):
        return 1.0 / self.limits[1]

    def integers(self, w, scales, training=None):
        largest = self.limits[1]
        if training:
            draw = keras.random.uniform(ops.shape(w), dtype="float32", seed=self.seed_generator)
            kept = ops.cast(ops.less(draw, ops.abs(w)), w.dtype)
            return ops.multiply(ops.multiply(float(largest), ops.sign(w)), kept)
        return ops.round(ops.multiply(float(largest), ops.clip(w, -1.0, 1.0)))

    def latent(self, kernel):
        return in_unit_interval(kernel)

    def get_config(self):
        return {"inference": self.inference, **super().get_config(), "seed": self.seed}
