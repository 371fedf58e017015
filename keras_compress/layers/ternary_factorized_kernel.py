"""What the ternary factorized layers share: two latent factors, rounded in every forward pass."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.decomposition.decompose import decompose
from keras_compress.decomposition.factors import check_factors
from keras_compress.decomposition.ranks import resolve_rank
from keras_compress.decomposition.ternary import TernaryFactors, balanced_levels, recover
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.stored_kernel import GridKernel
from keras_compress.quantizers.ternary import Ternary

# Standard deviation of latent weights in units of their level: half of them round to 0.
_SPREAD = 0.7413


class TernaryFactorizedKernel:
    """Mixin, left of a base of compressed layers: a kernel `x d y`, x and y of -1, 0 and 1.

    A layer writes `fans` and `mix`, and gives the two layers of its export form.

    Args:
        *args: For the layer's own base.
        rank: See `TernaryFactorizedDense`.
        **kwargs: For the layer's own base.
    """

    def __init__(self, *args, rank, **kwargs):
        super().__init__(*args, **kwargs)
        self.rank = validation.positive_int("rank", rank, self)
        self.quantizer = Ternary(0.5, scale=None, relative=False)

    # What a layer writes.

    def fans(self, kernel_shape):
        """`(fan in, fan out)` of the dense kernel."""
        raise NotImplementedError

    def mix(self, outputs, scale, last):
        """The product with the last factor of what the first gave, times the scales."""
        raise NotImplementedError

    # What it gets from it.

    def build_kernel(self, input_channels):
        shape = self.kernel_shape(input_channels)
        resolve_rank(self.rank, TernaryFactors.limits(shape), owner=self)
        first, _, last = TernaryFactors.shapes(shape, (self.rank,))
        sigma = initializer_stddev(self.kernel_initializer, *self.fans(shape))
        # An entry of the kernel is a sum over `rank` products of levels, a quarter of them not 0.
        level = (4 * sigma**2 / self.rank) ** 0.25
        # Not autocast: half precision would move latent weights over the threshold.
        self.first, self.last = (
            self.add_kernel_weight(
                name, size, self.normal_initializer(_SPREAD * level, k), autocast=False
            )
            for k, (name, size) in enumerate((("first", first), ("last", last)))
        )
        self.scale = self._add_vector("scale", "ones", trainable=True)
        levels = keras.initializers.Constant(level)
        self.first_level = self._add_vector("first_level", levels, trainable=False)
        self.last_level = self._add_vector("last_level", levels, trainable=False)

    def _add_vector(self, name, initializer, trainable):
        # No regularizer or constraint of the kernel: they speak of the factors.
        weight = self.add_weight(
            name=name,
            shape=(self.rank,),
            initializer=initializer,
            trainable=trainable,
            autocast=False,
        )
        self._kernel_weights.append(weight)
        return weight

    def ternary_factors(self):
        """The factors as they multiply: `(x, d, y)`, tensors, x and y of -1, 0 and 1.

        Gradients pass straight through to the latent factors, in units of their levels.
        """
        first_level, last_level = map(ops.convert_to_tensor, (self.first_level, self.last_level))
        first = self.quantizer(ops.divide(ops.convert_to_tensor(self.first), first_level))
        last = self.quantizer(
            ops.divide(ops.convert_to_tensor(self.last), ops.expand_dims(last_level, -1))
        )
        scale = ops.multiply(ops.convert_to_tensor(self.scale), first_level * last_level)
        return first, scale, last

    def apply_kernel(self, inputs):
        first, scale, last = (ops.cast(t, self.compute_dtype) for t in self.ternary_factors())
        return self.mix(self.multiply(inputs, first), scale, last)

    def factors(self):
        """The `kc.decomposition.TernaryFactors` that the layer stands for now, scales >= 0."""
        self.check_built("factors")
        first, scale, last = map(ops.convert_to_numpy, self.ternary_factors())
        return TernaryFactors((first * np.where(scale < 0, -1, 1), np.abs(scale), last))

    def reconstruct_kernel(self):
        return self.factors().reconstruct().astype("float32")

    def kernel_bits(self):
        """Ternary codes and the scales; latent factors and levels only serve training."""
        codes = sum(self.quantizer.storage_bits(w.shape) for w in (self.first, self.last))
        return codes + 32 * self.rank

    def stored_kernels(self):
        """How a .tflite stores the two factors: the first with the scales, as `GridKernel`s."""
        first, scale, last = self.factors().arrays
        dead = scale == 0
        return (
            GridKernel(np.where(dead, 0, first), np.where(dead, 1.0, scale)),
            GridKernel(last, np.float32(1.0)),
        )

    def without_the_rest(self, name):
        """Changes of a configuration that leave the kernel alone: what comes after it is gone."""
        return {"name": f"{self.name}_{name}", "use_bias": False, "activation": None}

    @classmethod
    def fit_kernel(cls, kernel, *, rank=None, factors=None):
        """The greedy decomposition, real factors recovered from it, and their levels balanced.

        Args:
            kernel: Array in the source layer's layout.
            rank: As for the layer.
            factors: `kc.decomposition.TernaryFactors` of a kernel of that shape, instead of a rank.
        """
        if factors is None:
            if rank is None:
                raise ValueError(
                    f"{cls.__name__}: give `rank`, a number of terms, or `factors`; got neither."
                )
            factors = decompose(kernel, "ternary", rank, cls.__name__)
        check_factors(factors, kernel, ("ternary",), cls.__name__)
        first, last = recover(kernel, factors)
        first_level, last_level = balanced_levels(factors)
        values = [
            first * first_level,
            last * last_level[:, None],
            (factors.arrays[1] > 0).astype("float32"),
            first_level,
            last_level,
        ]
        return {"rank": factors.rank[0]}, values

    def get_config(self):
        return {**super().get_config(), "rank": self.rank}
