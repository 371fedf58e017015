"""PowerOfTwo: signed powers of two, or sums of a few."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.codes import Codes
from keras_compress.quantizers.powers import exact_power
from keras_compress.quantizers.quantizer import Quantizer, or_one


@keras.saving.register_keras_serializable(package="keras_compress")
class PowerOfTwo(Quantizer):
    """Zero and signed powers of two, so that a product is a shift; or sums of `terms` of them.

    - `terms=1`, the levels of incremental network quantization (INQ): `{0, +-2^n1, ..., +-2^n2}`
      with `n1 = floor(log2(4 max|w| / 3))` and `n2 = n1 + 1 - 2^(b-1) / 2`. A weight goes to the
      level `beta` if `(alpha + beta) / 2 <= |w| < 3 beta / 2`, where `alpha` is the next level
      below: to the nearest, in the linear sense.
    - `terms=N`, ShiftCNN: `w / max|w|` as a sum of N entries, each of a codebook of `2^b - 1`:
      `C_n = {0, +-2^(1-n), +-2^-n, ..., +-2^(2-n-M)}` with `M = floor((2^b - 1) / 2)`. The nearest
      of `C_1` is taken, then the nearest of `C_2` to the remainder, and so on.

    `rounding="stochastic"`, for one term: in training a value goes to one of the two powers around
    it, `2^k <= |w| < 2^(k+1)`, to the upper with probability `|w| / 2^k - 1`, so that its mean is
    `w`. The exponent is then clipped to `[n2, n1]`: only a zero becomes zero, and the mean holds
    inside of this range. Inference rounds as above. It is the rounding of activations in quantised
    back-propagation: `update_quantizer=` of the Quant layers.

    LiteRT has no shift kernels. The levels of `terms=1` with 3 or 4 bits are integers of int4 or
    int8, exactly; beyond (a ratio of 128 and more) a .tflite holds the nearest int8.

    Args:
        bits: b, bits of one term: from 2 to 7, with several terms to 5.
        terms: Number of terms, from 1 to 4.
        rounding: `"nearest"` or, with one term, `"stochastic"`.
        ste: Straight-through gradient, `"identity"` or `"clip"`.
        seed: Seed of the draws. Under JAX, use a stochastic quantizer inside of a layer, which
            tracks the generator.

    Raises:
        ValueError: if an argument is not one of these, or stochastic rounding comes with several
            terms.

    Reference:
        Zhou, Yao, Guo, Xu, Chen, "Incremental Network Quantization: Towards Lossless CNNs with
        Low-Precision Weights", 2017.
        Gudovskiy, Rigazio, "ShiftCNN: Generalized Low-Precision Architecture for Inference of
        Convolutional Neural Networks", 2017.
        Lin, Courbariaux, Memisevic, Bengio, "Neural Networks with Few Multiplications", 2015.

    Example:

    >>> q = PowerOfTwo(3)
    >>> q.levels([0.5, -0.2]).tolist()
    [[-0.5, -0.25, 0.0, 0.25, 0.5]]
    >>> q.decode(q.encode([0.5, -0.2, 0.1])).tolist()
    [0.5, -0.25, 0.0]
    """

    gradients = ("identity", "clip")

    def __init__(self, bits=5, terms=1, rounding="nearest", ste="identity", seed=None):
        super().__init__(ste)
        self.terms = validation.integer("terms", terms, 1, 4, self)
        # Sums of more widely spread terms would not be exact in float32.
        self.term_bits = validation.integer("bits", bits, 2, 7 if self.terms == 1 else 5, self)
        self.rounding = validation.one_of("rounding", rounding, ("nearest", "stochastic"), self)
        if self.rounding == "stochastic" and self.terms > 1:
            raise ValueError(
                f"{validation.prefix(self)}`rounding='stochastic'` draws one power of two; got "
                f"terms={self.terms}. Use terms=1, or rounding='nearest'."
            )
        self.seed = seed
        stochastic = self.rounding == "stochastic"
        self.seed_generator = keras.random.SeedGenerator(seed) if stochastic else None

    @property
    def bits(self):
        return self.terms * self.term_bits

    @property
    def state(self):
        return [] if self.seed_generator is None else [self.seed_generator]

    def magnitudes(self, term):
        """Positive entries of one term's codebook, ascending, in units of the scale.

        Args:
            term: Number of the term, from 0.
        """
        count = 2 ** (self.term_bits - 2) if self.terms == 1 else 2 ** (self.term_bits - 1) - 1
        return np.exp2(np.arange(-term - count + 1, -term + 1)).astype("float32")

    def scales(self, w):
        largest = self.max(ops.abs(w))
        if self.terms > 1:
            return or_one(largest)
        # The logarithm of a power of two may come out a rounding error below the integer.
        exponent = ops.floor(ops.add(ops.log2(ops.multiply(or_one(largest), 4 / 3)), 1e-6))
        return exact_power(exponent)

    def scale_count(self, shape):
        return 1

    def quantize(self, w, training=None, scales=None):
        """Returns the quantised float32 tensor.

        Args:
            w: float32 tensor.
            training: Whether stochastic rounding draws.
            scales: Largest level, if not that of `w` itself; larger weights become it.
        """
        scales = self.scales(w) if scales is None else scales
        units = ops.divide(w, scales)
        drawn = training and self.rounding == "stochastic"
        return ops.multiply(scales, self._drawn(units) if drawn else self._units(units))

    def _drawn(self, w):
        """One of the two powers of two around each weight, in units of the scale."""
        powers = self.magnitudes(0)
        # Searched, not computed: a logarithm may lie a rounding error below its integer.
        index = ops.searchsorted(powers, ops.abs(ops.reshape(w, (-1,))), side="right")
        below = ops.maximum(ops.subtract(ops.reshape(index, ops.shape(w)), 1), 0)
        draw = keras.random.uniform(ops.shape(w), dtype="float32", seed=self.seed_generator)
        excess = ops.subtract(ops.divide(ops.abs(w), ops.take(powers, below)), 1.0)
        chosen = ops.add(below, ops.cast(ops.less(draw, excess), below.dtype))
        chosen = ops.minimum(chosen, len(powers) - 1)
        return ops.multiply(ops.sign(w), ops.take(powers, chosen))

    def _units(self, w):
        """The sum of powers of two for weights in units of the scale."""
        rest, total = w, ops.zeros_like(w)
        for term in range(self.terms):
            entries = np.concatenate([[0], self.magnitudes(term)]).astype("float32")
            borders = (entries[1:] + entries[:-1]) / 2
            nearest = ops.searchsorted(borders, ops.abs(ops.reshape(rest, (-1,))), side="right")
            nearest = ops.reshape(ops.take(entries, nearest), ops.shape(w))
            part = ops.multiply(ops.sign(rest), nearest)
            total, rest = ops.add(total, part), ops.subtract(rest, part)
        return total

    def _table(self):
        """All sums of the terms, ascending."""
        table = np.zeros(1)
        for term in range(self.terms):
            entries = self.magnitudes(term)
            entries = np.concatenate([-entries, [0], entries])
            table = np.unique(table[:, None] + entries)
        return table.astype("float32")

    def levels(self, w):
        scale = ops.convert_to_numpy(self.scales(ops.cast(w, "float32"))).reshape(1, 1)
        return scale * self._table()

    def encode(self, w):
        w = ops.cast(w, "float32")
        scales, table = self.scales(w), self._table()
        units = ops.convert_to_numpy(self._units(ops.divide(w, scales)))
        ints = np.searchsorted(table, units).astype(np.min_scalar_type(len(table) - 1))
        return Codes(ints, ops.convert_to_numpy(scales).reshape(-1)[0], values=table)

    def get_config(self):
        return {
            "bits": self.term_bits,
            "terms": self.terms,
            "rounding": self.rounding,
            **super().get_config(),
            "seed": self.seed,
        }
