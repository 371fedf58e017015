"""Compress8: gradients exchanged in 8 bits."""

import math

import keras
from keras import ops

from keras_compress import validation
from keras_compress.optimizers.wrapper import OptimizerWrapper
from keras_compress.quantizers import DynamicTree8


@keras.saving.register_keras_serializable(package="keras_compress")
class Compress8(OptimizerWrapper):
    """Optimizer whose gradients are those that arrive after an exchange in 8 bits.

    In data parallelism each replica sends the gradients of its part of the batch to the others.
    Here every gradient is coded as `kc.quantizers.DynamicTree8` (one byte a value, and the
    tensor's maximum as a float32), decoded, and given to the wrapped optimizer, so that the cost
    in accuracy of the 8-bit exchange shows on one device; `bytes_exchanged` and
    `bytes_float32` tell what it saves.

    - `replicas=1`: every batch is one exchange. Under `tf.distribute` the replicas are real: each
      codes its own gradients before they are added up (bytes are counted for one replica).
    - `replicas=n`: n consecutive batches are the parts of n replicas; their decoded gradients are
      averaged, and the weights change once every n batches. The wrapped optimizer does it, by
      `gradient_accumulation_steps=n`, so its clipping acts on the average.

    It is a method for training: nothing of it is in the model.

    Args:
        optimizer: The `keras.optimizers.Optimizer` that does the update, or its name.
        replicas: Number of replicas to simulate.
        name: Name of the wrapper.

    Raises:
        ValueError: if `replicas` is no positive integer, or the optimizer accumulates gradients
            over another number of batches.

    Reference:
        Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((99,)), keras.layers.Dense(10)])
    >>> model.compile(Compress8("adam", replicas=2), "mse")
    >>> x, y = np.ones((64, 99)), np.ones((64, 10))
    >>> history = model.fit(x, y, batch_size=16, verbose=0)
    >>> int(model.optimizer.iterations)
    2
    >>> model.optimizer.bytes_exchanged, model.optimizer.bytes_float32
    (4032, 16000)
    """

    def __init__(self, optimizer, replicas=1, name=None):
        super().__init__(optimizer, name)
        self.replicas = validation.positive_int("replicas", replicas, self)
        self._quantizer = DynamicTree8()
        if self.replicas > 1:
            steps = self.innermost.gradient_accumulation_steps
            if steps not in (None, self.replicas):
                raise ValueError(
                    f"Compress8: replicas={replicas} accumulates the gradients of {replicas} "
                    f"batches, and the optimizer has gradient_accumulation_steps={steps}; leave "
                    "one of them out."
                )
            self.innermost.gradient_accumulation_steps = self.replicas

    def transform_gradients(self, gradients, variables):
        return [
            gradient
            if gradient is None or self._overwrite_variable_with_gradient(variable)
            else self._arrived(gradient)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    def _arrived(self, gradient):
        if hasattr(gradient, "dense_shape"):
            # Rows of an embedding, on TensorFlow: the exchange is counted for all rows.
            import tensorflow as tf

            gradient = tf.convert_to_tensor(gradient)
        decoded = self._quantizer.quantize(ops.cast(gradient, "float32"))
        return ops.cast(decoded, gradient.dtype)

    @property
    def bytes_exchanged(self):
        """Bytes that all replicas have sent, each its gradients once a batch."""
        bits = sum(self._quantizer.storage_bits(v.shape) for v in self._trainable_variables)
        return self._exchanges * bits // 8

    @property
    def bytes_float32(self):
        """Bytes that the same exchange takes in float32."""
        return self._exchanges * sum(4 * math.prod(v.shape) for v in self._trainable_variables)

    @property
    def _exchanges(self):
        return int(ops.convert_to_numpy(self.innermost._iterations))

    def get_config(self):
        return {**super().get_config(), "replicas": self.replicas}
