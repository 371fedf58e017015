"""BinaryDense: a dense layer with weights, and by default inputs, of one bit."""

import keras
from keras import ops

from keras_compress.layers.binary_kernel import BinaryKernel
from keras_compress.layers.quant_dense import QuantDense
from keras_compress.quantizers import WeightClip


@keras.saving.register_keras_serializable(package="keras_compress")
class BinaryDense(BinaryKernel, QuantDense):
    """Dense layer that multiplies signs by signs: `sign(x) @ sign(w) + b`.

    `QuantDense` with `kc.quantizers.Sign` for weights and inputs, and XNOR-Net's K where asked for.
    Latent float weights are trained by the straight-through gradient; only their signs are used,
    and only their signs are stored. The forms of the literature:

    - BNN: `BinaryDense(units)`. Put a batch normalisation before it.
    - BinaryConnect: `BinaryDense(units, input_quantizer=None)`.
    - Binary-weight network (BWN): `BinaryDense(units, input_quantizer=None, scale="mean_abs")`.
    - XNOR-Net: `BinaryDense(units, scale="mean_abs", input_scale="xnor")`.

    What it buys: `storage_bits` is that of the packed form, 1 bit a weight (and 32 a scale), the
    latent weights left out: 32 times less than float32. Stock LiteRT has no kernel for one bit: a
    .tflite holds the weights as native int2, exactly, 16 times smaller than float32, or with
    `to_tflite(optimize_for="size")` at one bit, decoded at load.

    `from_layer` defaults to the binary-weight form (`scale="mean_abs"`, `input_quantizer=None`),
    whose outputs approximate the trained layer's, and takes its kernel as latent weights (divided
    by `max|kernel|` if `scale=None`). `expand()` is the dense layer with the binary kernel; the
    input quantizer and `input_scale` are not part of it.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added. It stays float.
        input_quantizer: Quantizer of the inputs: a `kc.quantizers.Quantizer` without a scale, its
            name or configuration, or `None` (float inputs).
        scale: `None` (weights are -1 and 1) or `"mean_abs"`: each output has a scale `mean|w|`.
        input_scale: `None` or `"xnor"`: outputs are multiplied by `K = mean|x|` of their row, so
            that the magnitude of the input is not lost. The gradient runs through K.
        ste: Straight-through gradient of the weights: `"clip"`, `"identity"` or, with a scale,
            `"scaled"` (XNOR-Net's formula): see `kc.quantizers.Quantizer`.
        stochastic: Whether training draws the signs of the weights, +1 with probability
            `clip((w + 1) / 2, 0, 1)`. Inference takes the sign.
        seed: Seed of these draws.
        kernel_constraint: Constraint of the latent weights; by default they are clipped to [-1, 1]
            after each update. `None` for none.
        **kwargs: `grad_quantizer` and `update_quantizer` of `QuantDense`, and the other arguments
            of `keras.layers.Dense`; initializer and regularizer of the kernel act on the latent
            weights.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if an option is unknown, `input_scale="xnor"` comes without an input quantizer,
            `ste="scaled"` without a scale, or the input quantizer has a scale.

    Reference:
        Courbariaux, Bengio, David, "BinaryConnect: Training Deep Neural Networks with binary
        weights during propagations", 2015.
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016.
        Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net: ImageNet Classification Using Binary
        Convolutional Neural Networks", 2016.

    Example:

    >>> layer = BinaryDense(64, use_bias=False)
    >>> layer.build((None, 1024))
    >>> layer.storage_bits() // 8
    8192
    >>> sorted(set(layer.expand().kernel.numpy().ravel().tolist()))
    [-1.0, 1.0]
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        input_quantizer="sign",
        scale=None,
        input_scale=None,
        ste="clip",
        stochastic=False,
        seed=None,
        kernel_constraint=WeightClip(1.0),  # noqa: B008 - holds no state
        **kwargs,
    ):
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            input_quantizer=input_quantizer,
            scale=scale,
            input_scale=input_scale,
            ste=ste,
            stochastic=stochastic,
            seed=seed,
            kernel_constraint=kernel_constraint,
            **kwargs,
        )

    def magnitude(self, inputs):
        return ops.mean(ops.abs(inputs), axis=-1, keepdims=True)
