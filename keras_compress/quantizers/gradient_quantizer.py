"""GradientQuantizer and `quantize_gradient`: a quantizer in the backward pass."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.quantizers.registry import deserialize, get, serialize


@keras.saving.register_keras_serializable(package="keras_compress")
class GradientQuantizer(keras.layers.Layer):
    """Layer that passes its inputs on, and quantises the gradient that comes back.

    Put it behind the layer whose output gradient shall be quantised: what flows back into the layer
    is `quantizer.quantize(gradient, training=True)`, in float32. The Quant layers have it built in
    (`grad_quantizer=`). TensorFlow and JAX only; nothing of it is in an exported model.

    Args:
        quantizer: `kc.quantizers.Quantizer`, its name or configuration: `DoReFaGradient(6)`,
            `DynamicTree8()`, `FixedPoint(16, 14, "stochastic")`.
        **kwargs: `name` and `dtype`, as in Keras.

    Input shape:
        Any.

    Output shape:
        The same.

    Raises:
        ValueError: if `quantizer` is none.

    Reference:
        Zhou, Wu, Ni, Zhou, Wen, Zou, "DoReFa-Net: Training Low Bitwidth Convolutional Neural
        Networks with Low Bitwidth Gradients", 2016.
        Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2015.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, activation="relu"),
    ...     GradientQuantizer(kc.quantizers.DoReFaGradient(6)),
    ...     keras.layers.Dense(1),
    ... ])
    """

    def __init__(self, quantizer, **kwargs):
        super().__init__(**kwargs)
        self.quantizer = get(quantizer)
        if self.quantizer is None:
            raise ValueError(
                f"{validation.prefix(self)}`quantizer` must be a quantizer or its name, such as "
                "kc.quantizers.DoReFaGradient(6); got quantizer=None."
            )
        # Keras carries the random state that it finds as an attribute of a layer through a step.
        self._quantizer_state = list(self.quantizer.state)
        self.supports_masking = True

    def build(self, input_shape):
        self.built = True

    def call(self, inputs, training=None):
        return quantize_gradient(inputs, self.quantizer) if training else inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "quantizer": serialize(self.quantizer)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "quantizer": deserialize(config["quantizer"])})


def quantize_gradient(tensor, quantizer):
    """Returns `tensor` itself, and quantises the gradient that comes back to it, in float32.

    Args:
        tensor: Tensor of floats.
        quantizer: `kc.quantizers.Quantizer`; the layer that calls this tracks its `state`.
    """
    quantize = _with_draws_of_this_pass(quantizer)

    @ops.custom_gradient
    def identity(x):
        def backward(*args, upstream=None):
            gradient = args[0] if upstream is None else upstream
            quantised = quantize(ops.cast(gradient, "float32"))
            return ops.cast(quantised, gradient.dtype)

        return x, backward

    return identity(tensor)


def _with_draws_of_this_pass(quantizer):
    """The quantizer as a function of the gradient, without side effects.

    A backward pass cannot move a random state on every backend, so the forward pass does: it takes
    the seeds, and the quantizer finds them in its generators.
    """
    generators = quantizer.state
    seeds = [generator.next() for generator in generators]

    def quantize(gradient):
        held = [(g.state, seed) for g, seed in zip(generators, seeds, strict=True)]
        with keras.StatelessScope(state_mapping=held):
            return quantizer.quantize(gradient, training=True)

    return quantize
