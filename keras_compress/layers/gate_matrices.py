"""GateMatrices: the four gate matrices of an LSTM that read one vector, in a compact form."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress.decomposition.displacement import toeplitz_like_matvecs
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.factorized_dense import FactorizedDense
from keras_compress.layers.toeplitz_like_dense import ToeplitzLikeDense

FORMS = ("dense", "lowrank", "toeplitz_like")

# In Keras's order: input, forget, candidate, output.
_GATES = ("i", "f", "c", "o")


class GateMatrices(keras.layers.Layer):
    """Products of one vector with the matrices of all gates, stacked: `(batch, 4 * units)`.

    Part of `CompactLSTMCell`. `"dense"` and `"lowrank"` are one product for all gates, so that the
    low rank is that of the stacked matrix; `"toeplitz_like"` is one product for each gate.

    Args:
        form: `"dense"`, `"lowrank"` or `"toeplitz_like"`.
        units: Rows of one gate.
        rank: Rank of the form, an integer; `None` for `"dense"`.
        initializer: Initializer of the stacked matrix, or the spread that its form stands for.
        regularizer: Regularizer of each stored weight.
        constraint: Constraint of each stored weight.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.
    """

    def __init__(self, form, units, rank, initializer, regularizer, constraint, **kwargs):
        super().__init__(**kwargs)
        self.form, self.units, self.rank = form, units, rank
        self.initializer = initializer
        self.regularizer, self.constraint = regularizer, constraint

    def build(self, input_shape):
        features = input_shape[-1]
        stored = {
            "use_bias": False,
            "kernel_regularizer": self.regularizer,
            "kernel_constraint": self.constraint,
            "dtype": self.dtype_policy,
        }
        if self.form == "dense":
            # The initializer itself: the weights start as those of keras.layers.LSTM.
            stored["kernel_initializer"] = self.initializer
            self.products = [keras.layers.Dense(4 * self.units, name="dense", **stored)]
        elif self.form == "lowrank":
            stored["kernel_initializer"] = self._normal(features)
            self.products = [
                FactorizedDense(4 * self.units, rank=self.rank, name="lowrank", **stored)
            ]
        else:
            self.products = [
                ToeplitzLikeDense(
                    self.units,
                    rank=self.rank,
                    name=f"toeplitz_like_{gate}",
                    kernel_initializer=self._normal(features, 2 * index),
                    **stored,
                )
                for index, gate in enumerate(_GATES)
            ]
        for product in self.products:
            product.build((None, features))
        self.built = True

    def _normal(self, features, index=0):
        """Normal initializer with the spread that the stacked matrix would have."""
        if isinstance(self.initializer, keras.initializers.Orthogonal):
            # Orthonormal along the shorter side.
            stddev = self.initializer.gain / math.sqrt(max(features, 4 * self.units))
        else:
            stddev = initializer_stddev(self.initializer, features, 4 * self.units)
        seed = self.initializer.get_config().get("seed")
        return keras.initializers.RandomNormal(
            stddev=stddev, seed=seed + index if isinstance(seed, int) else None
        )

    def call(self, inputs):
        if isinstance(self.products[0], ToeplitzLikeDense):
            return self._toeplitz_like(inputs)
        outputs = [product(inputs) for product in self.products]
        return outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=-1)

    def _toeplitz_like(self, inputs):
        """All gates at once: the FFT of the inputs serves all of them."""
        # Not ops.stack: on TensorFlow it takes no variables of Keras.
        g, h = (
            ops.concatenate([ops.expand_dims(weight, 0) for weight in weights])
            for weights in zip(*((product.g, product.h) for product in self.products), strict=True)
        )
        missing = g.shape[1] - inputs.shape[-1]
        if missing:
            inputs = ops.pad(inputs, ((0, 0), (0, missing)))
        outputs = toeplitz_like_matvecs(inputs, g, h)[:, :, : self.units]
        return ops.reshape(outputs, (-1, len(_GATES) * self.units))

    def assign(self, values):
        """Sets the weights to what `fit` gave."""
        for weight, value in zip(self.weights, values, strict=True):
            weight.assign(value)

    def reconstruct(self):
        """The stacked dense matrix `(features, 4 * units)`, as a numpy array."""
        if self.form == "dense":
            return ops.convert_to_numpy(self.products[0].kernel)
        return np.concatenate([product.reconstruct_kernel() for product in self.products], axis=1)

    def macs(self):
        """Multiply-accumulates of one step."""
        if self.form == "dense":
            return math.prod(self.products[0].kernel.shape)
        return sum(product.macs() for product in self.products)

    def use_export_form(self):
        """Puts the products in the form in which a .tflite stores them."""
        if self.form != "toeplitz_like":
            return
        forms = [product.export_form() for product in self.products]
        if all(isinstance(form, keras.layers.Dense) for form in forms):
            # Too small for the form to pay: one dense product for all gates.
            dense = keras.layers.Dense(4 * self.units, use_bias=False, dtype=self.dtype_policy)
            kernel = self.reconstruct()
            dense.build((None, len(kernel)))
            dense.kernel.assign(kernel)
            forms = [dense]
        self._tracker.unlock()
        self.products = forms
        self._tracker.lock()

    @staticmethod
    def fit(form, matrix, rank):
        """Fits a form to a trained stacked matrix.

        Args:
            form: As for the layer.
            matrix: Array `(features, 4 * units)`.
            rank: What `from_layer` of `FactorizedDense` or `ToeplitzLikeDense` takes, or `None`
                for its default.

        Returns:
            `(rank, values)`: the rank as an integer, and the arrays that `assign` takes.
        """
        if form == "dense":
            return None, [matrix]
        options = {} if rank is None else {"rank": rank}
        layer, parts = FactorizedDense, [matrix]
        if form == "toeplitz_like":
            layer, parts = ToeplitzLikeDense, np.split(matrix, len(_GATES), axis=1)
        fits = [layer.fit_kernel(part, **options) for part in parts]
        return fits[0][0]["rank"], [value for _, values in fits for value in values]
