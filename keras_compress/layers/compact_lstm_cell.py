"""CompactLSTMCell: one step of an LSTM whose gate matrices are low-rank or Toeplitz-like."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.decomposition.ranks import resolve_rank
from keras_compress.layers.gate_matrices import FORMS, GateMatrices


@keras.saving.register_keras_serializable(package="keras_compress")
class CompactLSTMCell(keras.layers.LSTMCell):
    """One step of `CompactLSTM`, for `keras.layers.RNN`.

    Args:
        units: Size of the cell state, and of the output unless `share_projection`.
        activation: Activation function of candidate and output.
        recurrent_activation: Activation function of the gates.
        use_bias: Whether a bias is added.
        recurrent: Form of the recurrent kernel: see `CompactLSTM`.
        rank: Rank of the recurrent kernel.
        share_projection: Whether the cell gives `P h` in place of `h`, as output and as state.
        kernel: Form of the kernel of the inputs.
        kernel_rank: Rank of the kernel of the inputs; `None` for `rank`.
        **kwargs: The other arguments of `keras.layers.LSTMCell`. `recurrent_dropout` has one mask
            for all gates, on the state as the recurrent kernel reads it.

    Call arguments:
        inputs: Tensor `(batch, features)`.
        states: List of two tensors: the last output, and the cell state `(batch, units)`.
        training: Whether dropout is active.

    Reference:
        Lu, Sindhwani, Sainath, "Learning Compact Recurrent Neural Networks", 2016.

    Example:

    >>> cells = [CompactLSTMCell(128, rank=16, share_projection=True), CompactLSTMCell(64, rank=16)]
    >>> keras.layers.RNN(cells)(keras.Input((10, 40))).shape
    (None, 64)
    """

    def __init__(
        self,
        units,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias=True,
        *,
        recurrent="lowrank",
        rank,
        share_projection=False,
        kernel="dense",
        kernel_rank=None,
        **kwargs,
    ):
        super().__init__(
            validation.positive_int("units", units, self),
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            **kwargs,
        )
        # Keras gives every gate a mask of its own; a shared projection has no gates to tell apart.
        self.dropout_mask_count = None
        self.recurrent = validation.one_of("recurrent", recurrent, FORMS[1:], self)
        (self.rank,) = resolve_rank(rank, (self.units,), owner=self)
        self.share_projection = bool(share_projection)
        if self.share_projection and self.recurrent != "lowrank":
            raise ValueError(
                f"{type(self).__name__}: `share_projection=True` goes with recurrent='lowrank', "
                f"which has a projection; got recurrent={recurrent!r}."
            )
        self.kernel = validation.one_of("kernel", kernel, FORMS, self)
        if kernel_rank is not None and self.kernel == "dense":
            raise ValueError(
                f"{type(self).__name__}: `kernel_rank` goes with kernel='lowrank' or "
                f"'toeplitz_like'; got kernel_rank={kernel_rank!r} and kernel='dense'."
            )
        self.kernel_rank = kernel_rank
        if kernel_rank is not None:
            self.kernel_rank = validation.positive_int("kernel_rank", kernel_rank, self)
        self.output_size = self.rank if self.share_projection else self.units
        self.state_size = [self.output_size, self.units]
        shared = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.input_gates = GateMatrices(
            self.kernel,
            self.units,
            self.kernel_rank or self.rank,
            self.kernel_initializer,
            self.kernel_regularizer,
            self.kernel_constraint,
            name="kernel",
            **shared,
        )
        self.recurrent_gates = GateMatrices(
            self.recurrent,
            self.units,
            self.rank,
            self.recurrent_initializer,
            self.recurrent_regularizer,
            self.recurrent_constraint,
            name="recurrent_kernel",
            **shared,
        )
        self.bias = None

    def build(self, input_shape):
        features = input_shape[-1]
        self._check_kernel_rank(features)
        self.input_gates.build((None, features))
        self.recurrent_gates.build((None, self.units))
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(4 * self.units,),
                initializer=self._initial_bias,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: features})
        self.built = True

    def _check_kernel_rank(self, features):
        limits = {
            "lowrank": min(features, 4 * self.units),
            "toeplitz_like": max(features, self.units),
        }
        rank = self.kernel_rank or self.rank
        if rank > limits.get(self.kernel, rank):
            raise ValueError(
                f"{type(self).__name__}: `kernel_rank` (`rank` where not given) must be at most "
                f"{limits[self.kernel]} for kernel={self.kernel!r}, {features} features and "
                f"{self.units} units; got {rank}. Lower it, or use kernel='dense'."
            )

    def _initial_bias(self, shape, dtype=None):
        if not self.unit_forget_bias:
            return self.bias_initializer(shape, dtype=dtype)
        return ops.concatenate(
            [
                self.bias_initializer((self.units,), dtype=dtype),
                ops.ones((self.units,), dtype=dtype),
                self.bias_initializer((2 * self.units,), dtype=dtype),
            ]
        )

    @property
    def projection(self):
        """The projection `P` of a low-rank recurrent kernel, `(units, rank)`; else `None`."""
        if self.recurrent != "lowrank" or not self.built:
            return None
        return self.recurrent_gates.products[0].factors[0]

    def call(self, inputs, states, training=False):
        last, carry = states
        if training and 0 < self.dropout < 1:
            inputs = ops.multiply(inputs, self.get_dropout_mask(inputs))
        if training and 0 < self.recurrent_dropout < 1:
            last = ops.multiply(last, self.get_recurrent_dropout_mask(last))
        gates = ops.add(self.input_gates(inputs), self._recur(last))
        if self.bias is not None:
            gates = ops.add(gates, self.bias)
        write, keep, candidate, read = ops.split(gates, 4, axis=-1)
        carry = self.recurrent_activation(keep) * carry + self.recurrent_activation(
            write
        ) * self.activation(candidate)
        outputs = self.recurrent_activation(read) * self.activation(carry)
        if self.share_projection:
            outputs = ops.matmul(outputs, self.projection)
        return outputs, [outputs, carry]

    def _recur(self, last):
        if not self.share_projection:
            return self.recurrent_gates(last)
        # The state is projected already.
        return ops.matmul(last, self.recurrent_gates.products[0].factors[1])

    def get_config(self):
        return {
            **super().get_config(),
            "recurrent": self.recurrent,
            "rank": self.rank,
            "share_projection": self.share_projection,
            "kernel": self.kernel,
            "kernel_rank": self.kernel_rank,
        }
