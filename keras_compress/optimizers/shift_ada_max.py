"""ShiftAdaMax: AdaMax by shifts."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers import ap2


@keras.saving.register_keras_serializable(package="keras_compress")
class ShiftAdaMax(keras.optimizers.Adamax):
    """AdaMax whose multiplications are by powers of two (BNN's shift-based AdaMax).

    With `AP2(x) = sign(x) 2^round(log2|x|)` (`kc.quantizers.ap2`), for a gradient g at step t,

    - `m += AP2(1 - beta_1) (g - m)`,
    - `u = max(u - AP2(1 - beta_2) u, |g|)`,
    - `w -= AP2(learning_rate / (1 - (1 - AP2(1 - beta_1))^t)) m AP2(1 / (u + epsilon))`.

    The learning rate counts by its nearest power of two: schedules move it in octaves. It is a
    training method for hardware with shifts; elsewhere it costs what AdaMax costs.

    Args:
        learning_rate: Float, schedule or callable, as in `keras.optimizers.Adamax`.
        beta_1: Decay of the first moment. Its `1 - beta_1` counts by its nearest power of two.
        beta_2: Decay of the infinity norm, likewise.
        epsilon: Added to the infinity norm.
        **kwargs: The other arguments of `keras.optimizers.Adamax`.

    Raises:
        ValueError: if a decay is outside of [0, 1).

    Reference:
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016.

    Example:

    >>> import keras
    >>> weight = keras.Variable([1.0, 1.0])
    >>> ShiftAdaMax(learning_rate=0.25).apply([keras.ops.array([0.5, -2.0])], [weight])
    >>> keras.ops.convert_to_numpy(weight).round(6).tolist()
    [0.75, 1.25]
    """

    def __init__(
        self, learning_rate=2**-10, beta_1=1 - 2**-3, beta_2=1 - 2**-10, epsilon=1e-7, **kwargs
    ):
        beta_1 = validation.number("beta_1", beta_1, 0, 1, high_open=True, owner=self)
        beta_2 = validation.number("beta_2", beta_2, 0, 1, high_open=True, owner=self)
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        dtype = variable.dtype
        gradient = ops.cast(gradient, dtype)
        index = self._get_variable_index(variable)
        m, u = self._m[index], self._u[index]
        rate_1, rate_2 = (ap2(ops.cast(1 - beta, dtype)) for beta in (self.beta_1, self.beta_2))
        self.assign_add(m, ops.multiply(rate_1, ops.subtract(gradient, m)))
        decayed = ops.subtract(u, ops.multiply(rate_2, u))
        self.assign(u, ops.maximum(decayed, ops.abs(gradient)))
        step = ops.cast(self.iterations + 1, "float32")
        kept = ops.subtract(1.0, ops.cast(rate_1, "float32"))
        correction = ops.subtract(1.0, ops.power(kept, step))
        rate = ap2(ops.divide(ops.cast(learning_rate, "float32"), correction))
        inverse = ap2(ops.reciprocal(ops.add(u, self.epsilon)))
        self.assign_sub(variable, ops.multiply(ops.cast(rate, dtype), ops.multiply(m, inverse)))
