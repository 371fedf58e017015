"""ShiftBatchNormalization: batch normalisation by shifts."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers import ap2


@keras.saving.register_keras_serializable(package="keras_compress")
class ShiftBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose multiplications are by powers of two (BNN's shift-based one).

    With `AP2(x) = sign(x) 2^round(log2|x|)` (`kc.quantizers.ap2`) and `C = x - mean(x)`,

    - `var = mean(C AP2(C))`,
    - `y = AP2(gamma) C AP2(1 / sqrt(var + epsilon)) + beta`.

    Gradients go straight through AP2. Moving averages of mean and `var` serve inference. `expand()`
    is the stock layer that gives the same at inference, and what a .tflite gets: LiteRT has no
    shift kernels, so it costs there what any batch normalisation costs.

    Args:
        axis: Axis of the channels.
        momentum: Momentum of the moving averages.
        epsilon: Added to the variance.
        center: Whether `beta` is added.
        scale: Whether `gamma` multiplies.
        **kwargs: The other arguments of `keras.layers.BatchNormalization`, but `synchronized` and
            `renorm`.

    Input shape:
        Any, with the channels along `axis`.

    Output shape:
        The same.

    Raises:
        ValueError: if `synchronized` or `renorm` is asked for.

    Reference:
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016.

    Example:

    >>> import keras
    >>> layer = ShiftBatchNormalization(epsilon=0.0)
    >>> outputs = layer(keras.ops.array([[3.0], [1.0], [-1.0], [-3.0]]), training=True)
    >>> keras.ops.convert_to_numpy(outputs).ravel().tolist()
    [1.5, 0.5, -0.5, -1.5]
    """

    def __init__(self, axis=-1, momentum=0.99, epsilon=1e-3, center=True, scale=True, **kwargs):
        for name in ("synchronized", "renorm"):
            if kwargs.get(name):
                raise ValueError(
                    f"{validation.prefix(self)}`{name}` must be False: the shift-based form has "
                    f"none; got {name}={kwargs[name]!r}. Use keras.layers.BatchNormalization."
                )
        super().__init__(
            axis=axis, momentum=momentum, epsilon=epsilon, center=center, scale=scale, **kwargs
        )

    def call(self, inputs, training=None, mask=None):
        # As in the stock layer: half precision overflows in the variance.
        inputs = ops.cast(inputs, "float32")
        if training and self.trainable:
            mean, variance = self._shift_moments(inputs, mask)
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        else:
            mean = ops.convert_to_tensor(self.moving_mean)
            variance = ops.convert_to_tensor(self.moving_variance)
        outputs = ops.multiply(
            ops.subtract(inputs, self._along_axis(mean, inputs)),
            self._along_axis(self._inverse_deviation(variance), inputs),
        )
        if self.scale:
            outputs = ops.multiply(outputs, self._along_axis(ap2(self.gamma), inputs))
        if self.center:
            outputs = ops.add(outputs, self._along_axis(self.beta, inputs))
        return ops.cast(outputs, self.compute_dtype)

    def _inverse_deviation(self, variance):
        return ap2(ops.rsqrt(ops.add(variance, self.epsilon)))

    def _shift_moments(self, inputs, mask):
        """Mean and `mean(C AP2(C))` of each channel, of what a mask lets count."""
        own = self.axis % len(inputs.shape)
        axes = tuple(axis for axis in range(len(inputs.shape)) if axis != own)
        weights = ops.ones_like(inputs)
        if mask is not None:
            weights = ops.multiply(weights, ops.expand_dims(ops.cast(mask, "float32"), own))
        count = ops.maximum(ops.sum(weights, axes), 1.0)
        mean = ops.divide(ops.sum(ops.multiply(weights, inputs), axes), count)
        centred = ops.subtract(inputs, self._along_axis(mean, inputs))
        squares = ops.multiply(weights, ops.multiply(centred, ap2(centred)))
        return mean, ops.divide(ops.sum(squares, axes), count)

    def _along_axis(self, values, inputs):
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        return ops.reshape(ops.cast(values, "float32"), shape)

    def expand(self):
        """The stock `keras.layers.BatchNormalization` with the same outputs at inference."""
        if not self.built:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' has no weights yet; call it on a batch "
                "before expand()."
            )
        config = {**self.get_config(), "scale": True}
        stock = keras.layers.BatchNormalization.from_config(config)
        stock.build(self._build_shapes_dict["input_shape"])
        variance = ops.convert_to_tensor(self.moving_variance)
        # What the shift makes of the deviation goes into gamma.
        gamma = ops.multiply(
            self._inverse_deviation(variance), ops.sqrt(ops.add(variance, self.epsilon))
        )
        if self.scale:
            gamma = ops.multiply(gamma, ap2(self.gamma))
        stock.gamma.assign(gamma)
        if self.center:
            stock.beta.assign(self.beta)
        stock.moving_mean.assign(self.moving_mean)
        stock.moving_variance.assign(self.moving_variance)
        return stock

    def export_form(self):
        """The stock layer: see `expand`."""
        return self.expand()
