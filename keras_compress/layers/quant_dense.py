"""QuantDense: a dense layer with quantised weights and inputs."""

import keras

from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.quantized_kernel import QuantizedKernel


@keras.saving.register_keras_serializable(package="keras_compress")
class QuantDense(QuantizedKernel, CompressedDense):
    """Dense layer with quantised weights, and quantised inputs where asked for.

    Trains latent float weights by the quantizer's straight-through gradient: every forward pass
    uses `kernel_quantizer(kernel)`, and only its codes and scales are stored. Some forms of the
    literature:

    - Ternary weight network: `QuantDense(units, kernel_quantizer="ternary")`.
    - DoReFa-Net: `QuantDense(units, kernel_quantizer=kc.quantizers.DoReFaWeight(2),
      input_quantizer=kc.quantizers.DoReFaActivation(2))`. Put a batch normalisation behind it.
    - HORQ: `QuantDense(units, kernel_quantizer=kc.quantizers.Sign("mean_abs"),
      input_quantizer=kc.quantizers.ResidualSign(2, axis=0, ste="clip"))`.
    - Few multiplications: `QuantDense(units, kernel_quantizer="stochastic_ternary",
      kernel_constraint=kc.quantizers.WeightClip(),
      update_quantizer=kc.quantizers.PowerOfTwo(4, rounding="stochastic"))`.
    - Limited precision: `QuantDense(units,
      kernel_quantizer=kc.quantizers.FixedPoint(16, 14), grad_quantizer=kc.quantizers.FixedPoint(
      16, 14, "stochastic"))`, trained by `kc.optimizers.FixedPointUpdates`.
    - int4 weights: `QuantDense(units, kernel_quantizer=kc.quantizers.Uniform(4))`.

    `BinaryDense` is this layer with signs.

    What it buys: a .tflite with native int2 (ternary and binary), int4 or int8 weights where the
    levels are integers times a scale, exactly the levels trained with; 16, 8 and 4 times smaller
    than float32 and faster. Codebooks become codes, or the nearest int8. Grids wider than int8
    with more than 256 values in use (`FixedPoint(16, 14)`) stay float.

    LiteRT multiplies these weights with inputs that it rounds to 255 steps of its own, between the
    smallest and the largest of a row or an image (and 0). The signs of `input_quantizer="sign"` are
    exact all the same. So are the levels of `UnitUniform(1)`, and under XNNPACK those of
    `UnitUniform` of 2, 4 and 8 bits where the largest input is 1. Other levels are rounded.

    `from_layer` takes the trained kernel as latent weights, in which the quantizer finds its
    scales. `expand()` is the dense layer with the quantised kernel; the input quantizer is not part
    of it.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added. It stays float.
        kernel_quantizer: Quantizer of the weights: a `kc.quantizers.Quantizer`, its name (such as
            `"ternary"`) or configuration, or `None` (float weights). Quantizers that saturate
            (`Sign`, `StochasticTernary`) go with `kernel_constraint=kc.quantizers.WeightClip()`.
        input_quantizer: Quantizer of the inputs, without scales or with one for each sample
            (`axis=0`), or `None` (float inputs).
        grad_quantizer: Quantizer of the gradient that arrives at the layer's output, in training,
            as `kc.quantizers.GradientQuantizer` behind the layer would do it; or `None`. An
            activation inside of the layer follows in the backward pass: where the products of
            that pass shall see the levels, put the activation in a layer of its own.
        update_quantizer: Quantizer of the inputs in the gradient of the kernel, in training (Q in
            `Q(x)^T g`), or `None`. The output and the gradient of the inputs are not touched. It
            costs one more product in each training step.
        **kwargs: The other arguments of `keras.layers.Dense`; initializer, regularizer and
            constraint of the kernel act on the latent weights.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if a quantizer is unknown, the input quantizer has a scale for the whole batch,
            or the kernel quantizer one for each input.

    Reference:
        Li, Zhang, Liu, "Ternary Weight Networks", 2016.
        Zhou, Wu, Ni, Zhou, Wen, Zou, "DoReFa-Net: Training Low Bitwidth Convolutional Neural
        Networks with Low Bitwidth Gradients", 2016.
        Gupta, Agrawal, Gopalakrishnan, Narayanan, "Deep Learning with Limited Numerical
        Precision", 2015.
        Lin, Courbariaux, Memisevic, Bengio, "Neural Networks with Few Multiplications", 2015.

    Example:

    >>> layer = QuantDense(64, use_bias=False, kernel_quantizer="ternary")
    >>> layer.build((None, 1024))
    >>> layer.storage_bits() // 8
    16388
    >>> len(set(layer.expand().kernel.numpy().ravel().tolist()))
    3
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        kernel_quantizer=None,
        input_quantizer=None,
        grad_quantizer=None,
        update_quantizer=None,
        **kwargs,
    ):
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            kernel_quantizer=kernel_quantizer,
            input_quantizer=input_quantizer,
            grad_quantizer=grad_quantizer,
            update_quantizer=update_quantizer,
            **kwargs,
        )
