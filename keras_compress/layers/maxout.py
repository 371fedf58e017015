"""What the maxout layers share: linear pieces, of which each unit gives the largest."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation


class Maxout:
    """Mixin, left of `keras.layers.Layer`: `pieces` linear maps for each output, and their maximum.

    Args:
        outputs: Name and value of the number of outputs, as a pair.
        pieces: Linear pieces of an output.
        use_bias: Whether every piece has a bias.
        kernel_initializer: Initializer of the pieces.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the kernel.
        bias_regularizer: Regularizer of the bias.
        kernel_constraint: Constraint of the kernel.
        bias_constraint: Constraint of the bias.
        **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(
        self,
        outputs,
        pieces,
        use_bias,
        kernel_initializer,
        bias_initializer,
        kernel_regularizer,
        bias_regularizer,
        kernel_constraint,
        bias_constraint,
        **kwargs,
    ):
        super().__init__(**kwargs)
        name, number = outputs
        setattr(self, name, validation.positive_int(name, number, self))
        self.pieces = validation.positive_int("pieces", pieces, self)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.bias = None

    def _add_weights(self, inputs, outputs):
        """Makes kernel and bias.

        Args:
            inputs: Shape of the kernel's axes before that of the outputs.
            outputs: Number of outputs.
        """

        def initializer(shape, dtype=None):
            # As one layer of all pieces: the initializer looks at the number of inputs.
            flat = self.kernel_initializer((*inputs, outputs * self.pieces), dtype=dtype)
            return ops.reshape(flat, shape)

        self.kernel = self.add_weight(
            name="kernel",
            shape=(*inputs, outputs, self.pieces),
            initializer=initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(outputs, self.pieces),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def product(self, inputs, kernel):
        """Inputs times a kernel whose last axis has the pieces of all outputs in turn."""
        raise NotImplementedError

    def linear(self, inputs):
        """The pieces' values, before the maximum: the layer's outputs with one more axis."""
        kernel = ops.convert_to_tensor(self.kernel)
        outputs = self.product(inputs, ops.reshape(kernel, (*kernel.shape[:-2], -1)))
        if self.bias is not None:
            outputs = ops.add(outputs, ops.reshape(self.bias, (-1,)))
        shape = tuple(outputs.shape[1:-1])
        # An open batch alone needs no shape that is computed at run time.
        leading = ops.shape(outputs)[:-1] if None in shape else (-1, *shape)
        return ops.reshape(outputs, (*leading, self.kernel.shape[-2], self.pieces))

    def call(self, inputs):
        return ops.max(self.linear(inputs), axis=-1)

    def count_wins(self, inputs):
        """How often each piece is the largest of its output.

        Args:
            inputs: A batch.

        Returns:
            Integer array `(outputs, pieces)`: each row sums to the number of samples (and
            positions). Of equal pieces the first wins.
        """
        values = ops.convert_to_numpy(self.linear(ops.convert_to_tensor(inputs)))
        winners = values.argmax(-1).reshape(-1, values.shape[-2])
        return np.stack([(winners == piece).sum(0) for piece in range(self.pieces)], -1)

    def with_pieces(self, chosen):
        """A copy of the layer with only some pieces of each output.

        Args:
            chosen: Integer array `(outputs, fewer pieces)`: which pieces stay.

        Returns:
            `(layer, [kernel, bias])`: the new layer, not built, and the values of its weights.
        """
        chosen = np.asarray(chosen)
        new = type(self).from_config({**self.get_config(), "pieces": chosen.shape[1]})
        arrays = [
            np.take_along_axis(
                ops.convert_to_numpy(weight),
                chosen.reshape((1,) * (len(weight.shape) - 2) + chosen.shape),
                -1,
            )
            for weight in self.weights
        ]
        return new, arrays

    @classmethod
    def _pieces_of(cls, layer, source):
        """What the activation of a stock layer asks for: factors of its kernel, one a piece."""
        if type(layer) is not source or not layer.built:
            raise ValueError(
                f"{cls.__name__}.from_layer takes a built keras.layers.{source.__name__}; got "
                f"{type(layer).__name__}{'' if getattr(layer, 'built', True) else ' (not built)'}."
            )
        activation = keras.activations.serialize(layer.activation)
        factors = {"linear": [1.0], "relu": [1.0, 0.0], "leaky_relu": [1.0, 0.2]}
        if activation not in factors:
            raise ValueError(
                f"{cls.__name__}.from_layer: the activation of '{layer.name}' must be one of "
                f"{', '.join(map(repr, factors))}, which are maxima of linear pieces; got "
                f"{activation!r}. Make a {cls.__name__}(...) and train it."
            )
        return np.array(factors[activation])

    def _start_from(self, layer, factors):
        """Sets the weights to those of a stock layer, times a factor for each piece."""
        kernel = ops.convert_to_numpy(layer.kernel)
        self.kernel.assign(kernel[..., None] * factors)
        if self.bias is not None:
            self.bias.assign(ops.convert_to_numpy(layer.bias)[:, None] * factors)

    def get_config(self):
        return {
            **super().get_config(),
            "pieces": self.pieces,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }


#: Arguments that a stock layer and its maxout form have in common.
CARRIED = (
    *("name", "dtype", "trainable", "use_bias", "kernel_initializer", "bias_initializer"),
    *("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint"),
)
