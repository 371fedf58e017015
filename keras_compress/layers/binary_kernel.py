"""What BinaryDense and BinaryConv2D add to the Quant layers: the sign, and XNOR-Net's K."""

from keras import ops

from keras_compress import quantizers, validation


class BinaryKernel:
    """Mixin, left of `QuantDense` or `QuantConv2D`: the kernel quantizer is `Sign`.

    A layer that uses it writes `magnitude(inputs)` (XNOR-Net's K).

    Args:
        *args: For the Quant layer.
        input_quantizer: See `BinaryDense`.
        scale: See `BinaryDense`.
        input_scale: See `BinaryDense`.
        ste: See `BinaryDense`.
        stochastic: See `BinaryDense`.
        seed: See `BinaryDense`.
        **kwargs: For the Quant layer.
    """

    def __init__(
        self,
        *args,
        input_quantizer="sign",
        scale=None,
        input_scale=None,
        ste="clip",
        stochastic=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            *args,
            kernel_quantizer=quantizers.Sign(scale, stochastic=stochastic, ste=ste, seed=seed),
            input_quantizer=input_quantizer,
            **kwargs,
        )
        self.input_scale = validation.one_of("input_scale", input_scale, (None, "xnor"), self)
        if self.input_scale and self.input_quantizer is None:
            raise ValueError(
                f"{validation.prefix(self)}`input_scale='xnor'` restores the magnitude that an "
                "input quantizer takes away; got input_quantizer=None. Give "
                "input_quantizer='sign', or leave input_scale=None."
            )

    def apply_kernel(self, inputs, training=None):
        outputs = super().apply_kernel(inputs, training)
        if self.input_scale is None:
            return outputs
        return ops.multiply(outputs, self.magnitude(inputs))

    @classmethod
    def fit_kernel(cls, kernel, *, scale="mean_abs", input_quantizer=None, **options):
        """Takes the trained kernel as latent weights.

        Args:
            kernel: Trained kernel, output channels last.
            scale: As for the layer. With `None`, the latent weights are `kernel / max|kernel|`:
                one factor for the layer, so that all signs, and all ratios, stay.
            input_quantizer: As for the layer.
            **options: The layer's other arguments of its own.
        """
        arguments = {"scale": scale, "input_quantizer": input_quantizer, **options}
        return arguments, [quantizers.Sign(scale).latent(kernel)]

    def get_config(self):
        config = super().get_config()
        del config["kernel_quantizer"]
        sign = self.kernel_quantizer
        return {
            **config,
            "scale": sign.scale,
            "input_scale": self.input_scale,
            "ste": sign.ste,
            "stochastic": sign.stochastic,
            "seed": sign.seed,
        }
