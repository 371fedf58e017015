"""`FrozenWeights`: the constraint that holds quantised weights in the compiled step."""

import keras
import numpy as np
from keras import ops

from keras_compress.pruning.pruning_mask import current_value, noted_value


@keras.saving.register_keras_serializable(package="keras_compress")
class FrozenWeights(keras.layers.Layer):
    """Weight constraint that puts frozen weights back to their value, after every update.

    `kc.callbacks.IncrementalQuantization` puts it on kernels and takes it off again. It is a layer
    so that what is frozen is state of the layer that it constrains: `.keras` files, `save_weights`
    and `BackupAndRestore` carry it.

    Args:
        shape: Shape of the weight.
        constraint: The constraint that the weight had before; it is applied first.
        **kwargs: `name` and `dtype`, as in Keras.
    """

    def __init__(self, shape, constraint=None, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.constraint = keras.constraints.get(constraint)
        # Values of frozen weights, NaN for those that are free.
        self.frozen = self._state("frozen", self.shape, keras.initializers.Constant(np.nan))
        # Scale that the quantizer found at the start (0 before), and epochs begun since.
        self.scale = self._state("scale", (), "zeros")
        self.epochs = self._state("epochs", (), "zeros", dtype="int32")
        self.built = True
        self._noted = noted_value(self.frozen)

    def _state(self, name, shape, initializer, dtype="float32"):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype=dtype,
            trainable=False,
            autocast=False,
        )

    def __call__(self, weight):
        if self.constraint is not None:
            weight = self.constraint(weight)
        weight = ops.convert_to_tensor(weight)
        frozen = ops.cast(current_value(self.frozen, self._noted), weight.dtype)
        return ops.where(ops.isnan(frozen), weight, frozen)

    def freeze(self, frozen):
        """Replaces what is frozen.

        Args:
            frozen: float array of the weight's shape, NaN where weights are free.
        """
        self.frozen.assign(frozen)
        self._noted = noted_value(self.frozen)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self._noted = noted_value(self.frozen)

    def get_config(self):
        return {
            **super().get_config(),
            "shape": self.shape,
            "constraint": keras.constraints.serialize(self.constraint),
        }
