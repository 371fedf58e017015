"""`SparseOp`: base of the operations that a pruned layer's kernel is run by."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation


class SparseOp:
    """A layer's kernel without its zeros, its bias and its activation, in float32.

    Args:
        layer: A built layer of class `source`. The weights are copied: later changes of the layer
            are not seen.

    Attributes:
        weights: The kernel: a `scipy.sparse.csr_array` `(outputs, inputs)`.
        nonzeros: Number of weights that are not zero.
    """

    source = None

    def __init__(self, layer):
        name = type(self).__name__
        if not isinstance(layer, self.source):
            raise ValueError(
                f"{name} runs a keras.layers.{self.source.__name__}; got {type(layer).__name__} "
                f"'{getattr(layer, 'name', layer)}'."
            )
        if not layer.built:
            raise ValueError(
                f"{name} needs a built layer: call '{layer.name}' on an input, or its build(), "
                "first."
            )
        self.layer_name = layer.name
        kernel = ops.convert_to_numpy(ops.cast(layer.kernel, "float32"))
        self.nonzeros = int(np.count_nonzero(kernel))
        self.sparsity = 1 - self.nonzeros / kernel.size
        self.bias = (
            ops.convert_to_numpy(ops.cast(layer.bias, "float32")) if layer.use_bias else None
        )
        self.activation = layer.activation
        self.weights = self.compressed(layer, kernel)

    def compressed(self, layer, kernel):
        """The kernel as a CSR array whose rows are outputs."""
        raise NotImplementedError

    def finish(self, outputs, channel_axis, to_keras, from_keras):
        """Adds the bias and applies the activation, in place where it can.

        Args:
            outputs: Array.
            channel_axis: Where it counts outputs.
            to_keras: Permutation of axes to the order in which Keras has them.
            from_keras: The way back.
        """
        if self.bias is not None:
            shape = [1] * outputs.ndim
            shape[channel_axis] = -1
            outputs += self.bias.reshape(shape)
        if self.activation is keras.activations.relu:
            return np.maximum(outputs, 0, out=outputs)
        if self.activation in (None, keras.activations.linear):
            return outputs
        # Softmax and the like look along an axis.
        activated = ops.convert_to_numpy(self.activation(outputs.transpose(to_keras)))
        return np.ascontiguousarray(activated.transpose(from_keras))

    def check_input(self, x, rank, channel_axis, channels):
        """Returns an input as a float32 array, or raises `ValueError`."""
        x = np.asarray(x, "float32")
        if x.ndim != rank or x.shape[channel_axis] != channels:
            raise ValueError(
                f"{validation.prefix(self)}layer '{self.layer_name}' takes inputs of rank {rank} "
                f"with {channels} channels on axis {channel_axis}; got shape {x.shape}."
            )
        return x
