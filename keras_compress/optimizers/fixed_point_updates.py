"""FixedPointUpdates: weights that stay in fixed point while they are trained."""

import keras
from keras import ops

from keras_compress import quantizers, validation
from keras_compress.optimizers.wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_compress")
class FixedPointUpdates(OptimizerWrapper):
    """Optimizer that rounds the weights to fixed point after each update of another one.

    No float copy of the weights is kept: after each step every trainable variable (kernels, biases,
    all others) is a value of the quantizer's grid, as memory of so many bits would hold it. With
    `rounding="nearest"` an update smaller than half of the grid's step is lost, and training stops
    early; with `rounding="stochastic"` it moves the weight by a whole step with the probability
    that makes the mean right. The moments that an optimizer keeps stay float.

    Together with `kernel_quantizer=`, `input_quantizer=` and `grad_quantizer=` of
    `kc.layers.QuantDense` and its kin, all numbers of a training step are in fixed point. It is a
    training method: for inference, a 16-bit grid goes into a .tflite as float16 or int8.

    Draws differ from replica to replica: use it without a distribution strategy.

    Args:
        optimizer: The `keras.optimizers.Optimizer` to wrap, its name or configuration. Learning
            rate, clipping, accumulation and moving average are its own.
        quantizer: `kc.quantizers.FixedPoint`, its name or configuration.
        name: Name of the wrapper.

    Raises:
        ValueError: if `optimizer` is no optimizer or `quantizer` no `FixedPoint`.

    Reference:
        Gupta, Agrawal, Gopalakrishnan, Narayanan, "Deep Learning with Limited Numerical
        Precision", 2015.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> weight = keras.Variable([0.5, -0.25])
    >>> optimizer = FixedPointUpdates(keras.optimizers.SGD(1.0), kc.quantizers.FixedPoint(8, 2))
    >>> optimizer.apply([keras.ops.array([0.1, 0.2])], [weight])
    >>> keras.ops.convert_to_numpy(weight).tolist()
    [0.5, -0.5]
    """

    def __init__(self, optimizer, quantizer, name=None):
        super().__init__(optimizer, name=name)
        self.quantizer = quantizers.get(quantizer)
        if not isinstance(self.quantizer, quantizers.FixedPoint):
            raise ValueError(
                f"{validation.prefix(self)}`quantizer` must be a kc.quantizers.FixedPoint, whose "
                f"grid does not move with the weights; got quantizer={quantizer!r}. Use "
                "FixedPoint(16, 14, 'stochastic')."
            )

    @property
    def variables(self):
        return super().variables + [generator.state for generator in self.quantizer.state]

    def after_update(self, variables):
        self._round(variables, training=True)

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(var_list)
        # A moving average that has taken the place of the weights lies on no grid.
        self._round(var_list, training=False)

    def _round(self, variables, training):
        for variable in variables:
            exact = ops.cast(ops.convert_to_tensor(variable), "float32")
            rounded = self.quantizer.quantize(exact, training)
            self.assign(variable, ops.cast(rounded, variable.dtype))

    def get_config(self):
        return {**super().get_config(), "quantizer": quantizers.serialize(self.quantizer)}
