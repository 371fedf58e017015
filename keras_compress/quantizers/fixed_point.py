"""FixedPoint: binary fixed point with nearest or stochastic rounding."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.grid_quantizer import GridQuantizer


@keras.saving.register_keras_serializable(package="keras_compress")
class FixedPoint(GridQuantizer):
    """Fixed point <IL, FL>: multiples of `eps = 2^-FL` in `[-2^(IL-1), 2^(IL-1) - eps]`.

    `FL = frac` bits after the point and `IL = word - frac` before it, the sign among them. What is
    out of range saturates.

    - `rounding="nearest"`: `eps * round(w / eps)`, ties to even.
    - `rounding="stochastic"`: in training `floor(w)` with probability `1 - (w - floor(w)) / eps`,
      else `floor(w) + eps` (`floor` to the grid), whose mean is `w`: updates smaller than `eps` are
      not lost. Inference rounds to the nearest.

    Args:
        word: Bits of a value, from 2 to 24.
        frac: Bits after the point, from -32 to 32; may be larger than `word`.
        rounding: `"nearest"` or `"stochastic"`.
        ste: Straight-through gradient, `"identity"` or `"clip"`.
        seed: Seed of the draws. Under JAX, use a stochastic quantizer inside of a layer, which
            tracks the generator.

    Raises:
        ValueError: if an argument is not one of these.

    Reference:
        Gupta, Agrawal, Gopalakrishnan, Narayanan, "Deep Learning with Limited Numerical
        Precision", 2015.

    Example:

    >>> q = FixedPoint(4, 2)
    >>> q.decode(q.encode([0.3, -5.0, 5.0])).tolist()
    [0.25, -2.0, 1.75]
    """

    gradients = ("identity", "clip")

    def __init__(self, word=16, frac=14, rounding="nearest", ste="identity", seed=None):
        super().__init__(ste)
        self.word = validation.integer("word", word, 2, 24, self)
        self.frac = validation.integer("frac", frac, -32, 32, self)
        self.rounding = validation.one_of("rounding", rounding, ("nearest", "stochastic"), self)
        self.seed = seed
        stochastic = self.rounding == "stochastic"
        self.seed_generator = keras.random.SeedGenerator(seed) if stochastic else None

    @property
    def bits(self):
        return self.word

    @property
    def state(self):
        return [] if self.seed_generator is None else [self.seed_generator]

    @property
    def limits(self):
        return (-(2 ** (self.word - 1)), 2 ** (self.word - 1) - 1)

    @property
    def step(self):
        return 2.0**-self.frac

    def integers(self, w, scales, training=None):
        position = ops.divide(w, scales)
        if training and self.rounding == "stochastic":
            draw = keras.random.uniform(ops.shape(w), dtype="float32", seed=self.seed_generator)
            below = ops.floor(position)
            above = ops.cast(ops.less(draw, ops.subtract(position, below)), w.dtype)
            position = ops.add(below, above)
        else:
            position = ops.round(position)
        return ops.clip(position, *self.limits)

    def get_config(self):
        return {
            "word": self.word,
            "frac": self.frac,
            "rounding": self.rounding,
            **super().get_config(),
            "seed": self.seed,
        }
