"""LazyDense: a dense layer that computes only the outputs that are asked for."""

import keras
from keras import ops

from keras_compress.layers.compressed_dense import CompressedDense


@keras.saving.register_keras_serializable(package="keras_compress")
class LazyDense(CompressedDense):
    """Dense layer that computes only the outputs that are asked for.

    `layer(x, wanted)` gives the columns `wanted` of the dense layer's output, for the price of
    those: their weights are gathered, then multiplied. For large output layers of which few values
    are used, such as the states that a speech decoder keeps alive, or the candidates of a ranking.
    `layer(x)` is the dense layer.

    What it buys: time, not bytes. `len(wanted) * input_dim` multiply-accumulates instead of
    `units * input_dim`, in the .tflite as a GATHER and a small FULLY_CONNECTED. The kernel is
    stored transposed, so that what is gathered are whole rows. In a model to be exported, give
    `wanted` a batch axis: `keras.Input((count,), dtype="int32")`.

    The activation sees the wanted outputs only: one that looks at all outputs, such as softmax, is
    a softmax over those.

    Args:
        units: Size of the whole output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel see it transposed, `(units, input_dim)`.

    Call arguments:
        inputs: Tensor `(batch, ..., input_dim)`.
        wanted: Tensor of integers in `[0, units)`, or `None` for all outputs: `(count,)`, the same
            for all rows, or `(batch, ..., count)`, for each row its own. May repeat and be in any
            order. That the integers are in range is not checked.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., count)`, or `(batch, ..., units)` without `wanted`.

    Raises:
        ValueError: if `wanted` is not of integers or of another shape.

    Reference:
        Vanhoucke, Senior, Mao, "Improving the speed of neural networks on CPUs", 2011.

    Example:

    >>> import numpy as np
    >>> layer = LazyDense(8000)
    >>> x = np.ones((2, 256), "float32")
    >>> layer(x, np.array([7, 42, 7999])).shape == (2, 3)
    True
    >>> layer.macs(), layer.macs(wanted=3)
    (2048000, 768)
    """

    def build(self, inputs_shape, wanted_shape=None):
        super().build(inputs_shape)

    def build_kernel(self, input_channels):
        def transposed(shape, dtype=None):
            # Fans are those of the dense kernel.
            return ops.transpose(self.kernel_initializer(shape[::-1], dtype=dtype))

        self.rows = self.add_kernel_weight("rows", (self.units, input_channels), transposed)

    def call(self, inputs, wanted=None):
        if wanted is None:
            return self.add_bias_and_activate(self.apply_kernel(inputs))
        wanted = ops.convert_to_tensor(wanted)
        self._check_wanted(wanted, inputs)
        outputs = self._columns(inputs, wanted)
        if self.bias is not None:
            outputs = ops.add(outputs, ops.take(self.bias, wanted, axis=0))
        return outputs if self.activation is None else self.activation(outputs)

    def _columns(self, inputs, wanted):
        if all(size == 1 for size in wanted.shape[:-1]):
            # One row of inputs, or one set for all: a plain product, faster than a batched one.
            rows = ops.take(self.rows, ops.reshape(wanted, (-1,)), axis=0)
            return ops.matmul(inputs, ops.transpose(rows))
        rows = ops.take(self.rows, wanted, axis=0)
        return ops.squeeze(ops.matmul(rows, ops.expand_dims(inputs, -1)), -1)

    def _check_wanted(self, wanted, inputs):
        dtype = keras.backend.standardize_dtype(wanted.dtype)
        if "int" not in dtype:
            raise ValueError(
                f"LazyDense '{self.name}': `wanted` must be integers, the indices of outputs; got "
                f"dtype {dtype}. From a mask of outputs, give the indices where it is true."
            )
        if len(wanted.shape) not in (1, len(inputs.shape)):
            raise ValueError(
                f"LazyDense '{self.name}': `wanted` must have shape (count,), or the shape of the "
                f"inputs with a count as last axis; got wanted of shape {tuple(wanted.shape)} for "
                f"inputs of shape {tuple(inputs.shape)}."
            )

    def apply_kernel(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.rows))

    def reconstruct_kernel(self):
        return ops.convert_to_numpy(self.rows).T

    def macs(self, input_shape=None, wanted=None):
        """Multiply-accumulates of one sample.

        Args:
            input_shape: `(batch, ..., input_dim)`; the batch size is ignored. `None` means one row.
            wanted: Number of outputs asked for, or `None` for all.
        """
        full = super().macs(input_shape)
        return full if wanted is None else full // self.units * wanted

    def compute_output_shape(self, inputs_shape, wanted_shape=None):
        count = self.units if wanted_shape is None else wanted_shape[-1]
        return (*inputs_shape[:-1], count)

    @classmethod
    def fit_kernel(cls, kernel):
        """Takes the trained kernel as it is, transposed.

        Args:
            kernel: Array `(input_dim, units)`.
        """
        return {}, [kernel.T]
