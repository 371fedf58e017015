"""MaxoutDense: each unit gives the largest of a few linear pieces."""

import math

import keras
from keras import ops

from keras_compress.layers.maxout import CARRIED, Maxout


@keras.saving.register_keras_serializable(package="keras_compress")
class MaxoutDense(Maxout, keras.layers.Layer):
    """Dense layer of maxout units: `y_u = max_k (x W[:, u, k] + b[u, k])`.

    The units learn their activation, a convex function of a few linear pieces; one piece is a
    linear dense layer, and ReLU is the maximum of one and zero (`from_layer`). After training,
    `kc.pruning.prune_maxout` removes the pieces that seldom are the largest.

    Args:
        units: Number of outputs.
        pieces: Linear pieces of a unit.
        use_bias: Whether every piece has a bias.
        kernel_initializer: As in `keras.layers.Dense` of `units * pieces` units.
        bias_initializer: As in `keras.layers.Dense`.
        kernel_regularizer: As in `keras.layers.Dense`.
        bias_regularizer: As in `keras.layers.Dense`.
        kernel_constraint: As in `keras.layers.Dense`.
        bias_constraint: As in `keras.layers.Dense`.
        **kwargs: Of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., inputs)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `units` or `pieces` is no positive integer.

    Reference:
        Goodfellow, Warde-Farley, Mirza, Courville, Bengio, "Maxout Networks", 2013. Rueda,
        Grzeszick, Fink, "Neuron Pruning for Compressing Deep Networks Using Maxout Architectures",
        2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> dense = keras.layers.Dense(4, activation="relu")
    >>> dense.build((None, 8))
    >>> kc.layers.MaxoutDense.from_layer(dense).pieces
    2
    """

    def __init__(
        self,
        units,
        pieces=2,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(
            ("units", units),
            pieces,
            use_bias,
            kernel_initializer,
            bias_initializer,
            kernel_regularizer,
            bias_regularizer,
            kernel_constraint,
            bias_constraint,
            **kwargs,
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def build(self, input_shape):
        self._add_weights((input_shape[-1],), self.units)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def product(self, inputs, kernel):
        return ops.matmul(inputs, kernel)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def macs(self, input_shape):
        """Multiply-accumulates of one sample."""
        return math.prod(input_shape[1:]) * self.units * self.pieces

    @classmethod
    def from_layer(cls, layer):
        """Starts from a trained `keras.layers.Dense`: the same outputs.

        Args:
            layer: A built layer. A linear one gets one piece, one with ReLU or leaky ReLU two.
        """
        factors = cls._pieces_of(layer, keras.layers.Dense)
        config = layer.get_config()
        new = cls(layer.units, len(factors), **{name: config[name] for name in CARRIED})
        new.build((None, layer.kernel.shape[0]))
        new._start_from(layer, factors)
        return new

    def get_config(self):
        return {**super().get_config(), "units": self.units}
