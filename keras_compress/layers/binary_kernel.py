"""What BinaryDense and BinaryConv2D share: a latent float kernel of which the sign is used."""

import numpy as np
from keras import ops

from keras_compress import quantizers, validation
from keras_compress.layers.stored_kernel import GridKernel


class BinaryKernel:
    """Mixin, left of `CompressedDense` or `CompressedConv2D`: one latent kernel, quantised.

    A layer that uses it writes `kernel_shape(input_channels)` and `magnitude(inputs)` (XNOR-Net's
    K).

    Args:
        *args: For the layer's own base.
        input_quantizer: See `BinaryDense`.
        scale: See `BinaryDense`.
        input_scale: See `BinaryDense`.
        ste: See `BinaryDense`.
        stochastic: See `BinaryDense`.
        seed: See `BinaryDense`.
        kernel_constraint: See `BinaryDense`.
        **kwargs: For the layer's own base.
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
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(*args, kernel_constraint=kernel_constraint, **kwargs)
        self.kernel_quantizer = quantizers.Sign(scale, stochastic=stochastic, ste=ste, seed=seed)
        self.input_quantizer = quantizers.get(input_quantizer)
        self.input_scale = validation.one_of("input_scale", input_scale, (None, "xnor"), self)
        if self.input_scale and self.input_quantizer is None:
            raise ValueError(
                f"{validation.prefix(self)}`input_scale='xnor'` restores the magnitude that an "
                "input quantizer takes away; got input_quantizer=None. Give "
                "input_quantizer='sign', or leave input_scale=None."
            )
        if getattr(self.input_quantizer, "scale", None) is not None:
            raise ValueError(
                f"{validation.prefix(self)}the scale of `input_quantizer` would be a mean over the "
                f"batch; got input_quantizer={type(self.input_quantizer).__name__}"
                f"(scale={self.input_quantizer.scale!r}). Use an input quantizer without a scale "
                "and input_scale='xnor'."
            )
        # Keras saves and updates what it finds as an attribute of a layer.
        self._quantizer_state = [
            entry
            for quantizer in (self.kernel_quantizer, self.input_quantizer)
            if quantizer is not None
            for entry in quantizer.state
        ]

    def build_kernel(self, input_channels):
        # Not autocast: half precision would flush small weights to zero, and change their sign.
        self.kernel = self.add_kernel_weight(
            "kernel", self.kernel_shape(input_channels), self.kernel_initializer, autocast=False
        )

    def call(self, inputs, training=None):
        return self.add_bias_and_activate(self.apply_kernel(inputs, training))

    def apply_kernel(self, inputs, training=None):
        kernel = ops.convert_to_tensor(self.kernel)
        if self.kernel_quantizer is not None:
            kernel = self.kernel_quantizer(kernel, training)
        kernel = ops.cast(kernel, self.compute_dtype)
        if self.input_quantizer is None:
            return self.multiply(inputs, kernel)
        outputs = self.multiply(self.input_quantizer(inputs, training), kernel)
        if self.input_scale is None:
            return outputs
        return ops.multiply(outputs, self.magnitude(inputs))

    def reconstruct_kernel(self):
        return self.kernel_quantizer.decode(self.kernel_quantizer.encode(self.kernel))

    def kernel_bits(self):
        return self.kernel_quantizer.storage_bits(self.kernel.shape)

    def export_form(self):
        """The layer for inference alone: kernel quantised once, no straight-through gradient.

        The converter folds neither the quantizer of a large kernel nor, everywhere, the zero that
        carries a gradient: they would run at each call.
        """
        form = type(self).from_config(self.get_config())
        form.build(self._build_shape())
        form.kernel.assign(self.reconstruct_kernel())
        if form.bias is not None:
            form.bias.assign(ops.convert_to_numpy(self.bias))
        form.kernel_quantizer = None
        codes = self.kernel_quantizer.encode(self.kernel)
        form.stored_kernel = GridKernel(codes.ints, codes.scale)
        if self.input_quantizer is not None:
            form.input_quantizer = self.input_quantizer.quantize
        return form

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
        if scale is None:
            kernel = kernel / max(np.abs(kernel).max(), np.finfo("float32").tiny)
        return {"scale": scale, "input_quantizer": input_quantizer, **options}, [kernel]

    def get_config(self):
        sign = self.kernel_quantizer
        return {
            **super().get_config(),
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "scale": sign.scale,
            "input_scale": self.input_scale,
            "ste": sign.ste,
            "stochastic": sign.stochastic,
            "seed": sign.seed,
        }
