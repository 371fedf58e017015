"""What all Quant layers share: a latent float kernel, quantised in every forward pass."""

import dataclasses

import numpy as np
from keras import ops

from keras_compress import quantizers, validation
from keras_compress.layers.stored_kernel import CodebookKernel, GridKernel
from keras_compress.quantizers.gradient_quantizer import quantize_gradient


class QuantizedKernel:
    """Mixin, left of a base of compressed layers: one latent kernel, quantised.

    A layer whose kernel's last axis is not the output channels writes `_by_output`.

    Args:
        *args: For the layer's own base.
        kernel_quantizer: See `QuantDense`.
        input_quantizer: See `QuantDense`.
        grad_quantizer: See `QuantDense`.
        update_quantizer: See `QuantDense`.
        **kwargs: For the layer's own base.
    """

    def __init__(
        self,
        *args,
        kernel_quantizer=None,
        input_quantizer=None,
        grad_quantizer=None,
        update_quantizer=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.kernel_quantizer = kernel_quantizer_of("kernel_quantizer", kernel_quantizer, self)
        self.input_quantizer = input_quantizer_of(input_quantizer, self)
        self.grad_quantizer = quantizers.get(grad_quantizer)
        self.update_quantizer = quantizers.get(update_quantizer)
        # Keras tracks what it finds as an attribute of a layer.
        self._quantizer_state = [
            entry
            for quantizer in (
                self.kernel_quantizer,
                self.input_quantizer,
                self.grad_quantizer,
                self.update_quantizer,
            )
            if quantizer is not None
            for entry in quantizer.state
        ]

    def build_kernel(self, input_channels):
        # Not autocast: half precision would flush small weights to zero, and change their sign.
        self.kernel = self.add_kernel_weight(
            "kernel", self.kernel_shape(input_channels), self.kernel_initializer, autocast=False
        )

    def latent_kernel(self):
        """The kernel as the quantizer gets it, a tensor: a layer may give the latent one a form."""
        return ops.convert_to_tensor(self.kernel)

    def _by_output(self, kernel):
        """The kernel with output channels as its last axis, as quantizers take it."""
        return kernel

    def call(self, inputs, training=None):
        outputs = self.add_bias_and_activate(self.apply_kernel(inputs, training))
        if training and self.grad_quantizer is not None:
            return quantize_gradient(outputs, self.grad_quantizer)
        return outputs

    def apply_kernel(self, inputs, training=None):
        kernel = self.latent_kernel()
        if self.kernel_quantizer is not None:
            quantized = self.kernel_quantizer(self._by_output(kernel), training)
            kernel = ops.reshape(quantized, kernel.shape)
        if self.input_quantizer is not None:
            inputs = self.input_quantizer(inputs, training)
        kernel = ops.cast(kernel, self.compute_dtype)
        if not training or self.update_quantizer is None:
            return self.multiply(inputs, kernel)
        exact = ops.cast(ops.stop_gradient(inputs), "float32")
        rounded = ops.cast(self.update_quantizer.quantize(exact, training), inputs.dtype)
        constant = ops.stop_gradient(kernel)
        # The second product is one with zeros: all that it gives is the gradient of the kernel.
        return ops.add(
            self.multiply(inputs, constant),
            self.multiply(rounded, ops.subtract(kernel, constant)),
        )

    def kernel_codes(self):
        """The `kc.quantizers.Codes` of the kernel, output channels last.

        Raises:
            ValueError: if the layer is not built or has no kernel quantizer.
        """
        self.check_built("kernel_codes")
        if self.kernel_quantizer is None:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' has a float kernel: kernel_quantizer is None."
            )
        return self.kernel_quantizer.encode(self._by_output(self.latent_kernel()))

    def reconstruct_kernel(self):
        if self.kernel_quantizer is None:
            return ops.convert_to_numpy(self.latent_kernel())
        return self.kernel_codes().decode().reshape(self.kernel.shape)

    def kernel_bits(self):
        if self.kernel_quantizer is None:
            return super().kernel_bits()
        return self.kernel_quantizer.storage_bits(self._by_output(self.kernel).shape)

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
        form.stored_kernel = self._stored_kernel()
        if self.input_quantizer is not None:
            form.input_quantizer = self.input_quantizer.quantize
        return form

    def _stored_kernel(self):
        return None if self.kernel_quantizer is None else stored_form(self.kernel_codes())

    @classmethod
    def fit_kernel(cls, kernel, *, kernel_quantizer=None, input_quantizer=None, **options):
        """Takes the trained kernel as latent weights; the quantizer finds its scales in them.

        Args:
            kernel: Trained kernel.
            kernel_quantizer: As for the layer. One whose levels are fixed in [-1, 1] (`Sign()`,
                `StochasticTernary()`) gets `kernel / max|kernel|`.
            input_quantizer: As for the layer.
            **options: The layer's other arguments of its own.
        """
        kernel_quantizer = quantizers.get(kernel_quantizer)
        if kernel_quantizer is not None:
            kernel = kernel_quantizer.latent(kernel)
        arguments = {"kernel_quantizer": kernel_quantizer, "input_quantizer": input_quantizer}
        return {**arguments, **options}, [kernel]

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_quantizer": quantizers.serialize(self.kernel_quantizer),
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "grad_quantizer": quantizers.serialize(self.grad_quantizer),
            "update_quantizer": quantizers.serialize(self.update_quantizer),
        }


def kernel_quantizer_of(name, identifier, owner):
    """The quantizer of a kernel that an argument stands for, or `None`.

    Args:
        name: Name of the argument.
        identifier: Its value: see `quantizers.get`.
        owner: The layer.

    Raises:
        ValueError: if it is no quantizer, or has scales along the kernel's first axis.
    """
    quantizer = quantizers.get(identifier)
    if quantizer is not None and quantizer.axis == 0:
        raise ValueError(
            f"{validation.prefix(owner)}scales of a kernel run along its output channels; got "
            f"{name}={type(quantizer).__name__}(axis=0). Use axis=-1, or axis=None for one scale."
        )
    return quantizer


def input_quantizer_of(identifier, owner):
    """The quantizer of inputs that `input_quantizer` stands for, or `None`.

    Args:
        identifier: Value of the argument: see `quantizers.get`.
        owner: The layer.

    Raises:
        ValueError: if it is no quantizer, or has a scale for the whole batch.
    """
    quantizer = quantizers.get(identifier)
    if quantizer is None or quantizer.axis == 0 or not quantizer.scale_count((1, 1)):
        return quantizer
    raise ValueError(
        f"{validation.prefix(owner)}the scale of `input_quantizer` would be one of the whole "
        f"batch; got input_quantizer={type(quantizer).__name__} with axis={quantizer.axis}. Use a "
        "quantizer without scales (Sign, UnitUniform, FixedPoint), one with axis=0 (a scale for "
        "each sample), or, for signs, BinaryDense or BinaryConv2D with input_scale='xnor'."
    )


def stored_form(codes):
    """How a .tflite stores the codes of a kernel, output channels last.

    Args:
        codes: `kc.quantizers.Codes`.

    Returns:
        A `GridKernel` where the codes are int8 times a scale, or where each channel has a codebook
        of its own, which becomes the nearest int8 one; a `CodebookKernel` where the layer has one
        of at most 256 values; else `None`: only floats hold it.
    """
    if codes.values is None and np.abs(codes.ints).max() <= 127:
        return GridKernel(codes.ints, codes.scale)
    if codes.axis is not None:
        ints, steps = _nearest_ints(codes.values)
        return GridKernel(ints[np.arange(len(ints)), codes.ints], steps * codes.scale)
    used, symbols = np.unique(codes.ints, return_inverse=True)
    if len(used) > 256:
        return None
    values = dataclasses.replace(codes, ints=used).decode()
    return CodebookKernel(symbols.reshape(codes.ints.shape), values)


def _nearest_ints(table):
    """int8 grid of each row of a table that its values lie nearest to, the coarsest of equals.

    Args:
        table: float array `(channels, values)`.

    Returns:
        `(ints, steps)`: arrays `(channels, values)` and `(channels,)`.
    """
    largest = np.abs(table).max(axis=1, keepdims=True).astype("float64")
    largest[largest == 0] = 1
    best = np.full(largest.shape, np.inf)
    ints, steps = np.zeros(table.shape), largest.copy()
    for count in range(1, 128):
        step = largest / count
        rounded = np.round(table / step)
        error = np.sum((rounded * step - table) ** 2, axis=1, keepdims=True)
        # Not for a rounding error's worth.
        closer = error < best - 1e-12 * largest**2
        best = np.where(closer, error, best)
        ints, steps = np.where(closer, rounded, ints), np.where(closer, step, steps)
    return ints.astype("int8"), steps[:, 0].astype("float32")
