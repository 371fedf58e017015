"""What FakeQuant layers with a kernel share: weights rounded to a grid, batch norm folded in."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.layers.fake_quant import fake_quant, move_average
from keras_compress.layers.stored_kernel import GridKernel

#: A channel's range is at least this share of the largest: a bias in the unit of a channel of
#: (nearly) zeros would overflow its 32 bits.
MIN_CHANNEL_SHARE = 2.0**-10
#: Scales of a batch normalisation smaller than this tell nothing of the variance before it.
MIN_SCALE = 1e-6

GRANULARITIES = ("channel", "tensor")


class FakeQuantKernel:
    """Mixin, left of a base of compressed layers: kernel rounded to a symmetric grid in each call.

    The grid is `max|w| / (2**(bits-1) - 1)` times integers, a step for each output channel or one
    for the kernel; the gradient passes straight through. The bias stays float: LiteRT holds it in
    32 bits.

    A batch normalisation behind the layer is folded into the kernel before it is rounded, as the
    converter folds it: `w * gamma / sigma`, with the *moving* variance in training and inference
    alike, so that the grid does not tremble with the batch. In training the outputs are then
    rescaled by `sigma_moving / sigma_batch` and centred by the batch's mean (Krishnamoorthi's
    correction), which makes them those of a batch normalisation on batch statistics; these are
    taken from the one convolution with rounded weights. Where `frozen` is 1 the correction is off
    and the moving statistics stay. In inference the layer is one product and one bias.

    Args:
        *args: For the layer's own base.
        weight_bits: Bits of a weight.
        granularity: `"channel"` or `"tensor"`: what has a step of its own.
        batch_norm: The `keras.layers.BatchNormalization` to fold, or its configuration; the layer
            makes its own copy of it, untrained. `None` for none.
        weights_only: Whether inputs are float, so that a .tflite stores a kernel of integers for
            float inputs; if not, inputs and outputs are rounded by `FakeQuant` layers, and the
            .tflite computes in integers.
        **kwargs: For the layer's own base.
    """

    #: With what the names of the kernel's initializer, regularizer and constraint begin.
    _prefix = "kernel"

    def __init__(
        self,
        *args,
        weight_bits=8,
        granularity="channel",
        batch_norm=None,
        weights_only=False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.weight_bits = validation.integer("weight_bits", weight_bits, 2, 8, self)
        self.granularity = validation.one_of("granularity", granularity, GRANULARITIES, self)
        self.batch_norm = _fresh(batch_norm)
        self.weights_only = bool(weights_only)
        #: Of an export form: ends of the kernel's range, known before tracing.
        self._known_limits = None

    def build(self, input_shape):
        super().build(input_shape)
        if self.batch_norm is not None:
            self.batch_norm.build((None, self._output_channels))
            self.frozen = self.add_weight(
                name="frozen", shape=(), initializer="zeros", trainable=False, autocast=False
            )

    def build_kernel(self, input_channels):
        # Not autocast: half precision is coarser than the grid of 8 bits is for large weights.
        self.kernel = self.add_kernel_weight(
            "kernel", self.kernel_shape(input_channels), self.kernel_initializer, autocast=False
        )

    def _by_output(self, kernel):
        """The kernel with output channels as its last axis."""
        return kernel

    def call(self, inputs, training=None):
        if self.batch_norm is None:
            kernel = self._rounded(ops.convert_to_tensor(self.kernel), training)
            outputs = self.multiply(inputs, ops.cast(kernel, self.compute_dtype))
            return self.add_bias_and_activate(outputs)
        scale, offset = self._affine()
        kernel = ops.reshape(
            ops.multiply(self._by_output(ops.convert_to_tensor(self.kernel)), scale),
            self.kernel.shape,
        )
        kernel = self._rounded(kernel, training)
        outputs = self.multiply(inputs, ops.cast(kernel, self.compute_dtype))
        if training and self.trainable and self.batch_norm.trainable:
            outputs = self._with_batch_statistics(outputs, scale, offset)
        else:
            outputs = ops.add(outputs, ops.cast(self._shaped(offset), outputs.dtype))
        return outputs if self.activation is None else self.activation(outputs)

    def _affine(self):
        """`(scale, offset)` of each channel: what the batch normalisation does to the product."""
        return batch_norm_affine(self.batch_norm, self.bias)

    def _with_batch_statistics(self, products, scale, offset):
        norm = self.batch_norm
        old_mean, old_variance = _value(norm.moving_mean, 0.0), _value(norm.moving_variance, 1.0)
        axes = [
            axis for axis in range(len(products.shape)) if axis != self._channel_index(products)
        ]
        mean, variance = ops.moments(ops.cast(products, "float32"), axes)
        # Of the products before the scale was folded in; a scale of zero has wiped them out.
        told = ops.greater(ops.abs(scale), MIN_SCALE)
        divisor = ops.where(told, scale, 1.0)
        raw_variance = ops.where(told, ops.divide(variance, ops.square(divisor)), old_variance)
        raw_mean = ops.add(ops.divide(mean, divisor), _value(self.bias, 0.0))
        raw_mean = ops.where(told, raw_mean, old_mean)
        ratio = ops.sqrt(
            ops.divide(ops.add(old_variance, norm.epsilon), ops.add(raw_variance, norm.epsilon))
        )
        shift = ops.subtract(_value(norm.beta, 0.0), ops.multiply(mean, ratio))
        frozen = ops.greater(self.frozen, 0.5)
        ratio = ops.where(frozen, 1.0, ratio)
        shift = ops.where(frozen, offset, shift)
        rate = ops.multiply(1.0 - norm.momentum, ops.subtract(1.0, self.frozen))
        move_average(norm.moving_mean, raw_mean, rate)
        move_average(norm.moving_variance, raw_variance, rate)
        ratio, shift = (ops.cast(self._shaped(v), products.dtype) for v in (ratio, shift))
        return ops.add(ops.multiply(products, ratio), shift)

    def _channel_index(self, outputs):
        return self._channel_axis % len(outputs.shape)

    def _shaped(self, vector):
        """One value for each output channel, in the shape that goes with the outputs."""
        if getattr(self, "data_format", "channels_last") == "channels_last":
            return vector
        return ops.reshape(vector, (1, -1, 1, 1))

    def _rounded(self, kernel, training=None):
        flat = self._by_output(kernel)
        exact = ops.stop_gradient(flat) if training else flat
        limits = self._known_limits
        if limits is None:
            limits = self._limits(ops.stop_gradient(flat))
        axis = None if self.granularity == "tensor" else -1
        rounded = fake_quant(
            exact, ops.negative(limits), limits, self.weight_bits, narrow=True, axis=axis
        )
        if training:
            # The whole range is on the grid, so that no weight's gradient is to be cut off; the
            # zero added here leaves the rounded values exact.
            rounded = ops.add(rounded, ops.subtract(flat, ops.stop_gradient(flat)))
        return ops.reshape(rounded, kernel.shape)

    def _limits(self, flat):
        """Upper end of the range of each channel, or of the kernel: scalar or vector."""
        sizes = ops.abs(ops.cast(flat, "float32"))
        largest = ops.max(sizes)
        largest = ops.where(ops.greater(largest, 0.0), largest, 1.0)
        if self.granularity == "tensor":
            return largest
        own = ops.max(sizes, axis=tuple(range(len(flat.shape) - 1)))
        return ops.maximum(own, ops.multiply(largest, MIN_CHANNEL_SHARE))

    def folded(self):
        """`(kernel, bias)` as float32 arrays, batch normalisation folded in, not rounded.

        The bias is `None` if there is neither a bias nor a batch normalisation.
        """
        self.check_built("folded")
        kernel = ops.convert_to_numpy(self.kernel).astype("float32")
        if self.batch_norm is None:
            bias = self.bias
            return kernel, None if bias is None else ops.convert_to_numpy(bias).astype("float32")
        scale, offset = (ops.convert_to_numpy(v) for v in self._affine())
        flat = ops.convert_to_numpy(self._by_output(kernel)) * scale
        return flat.reshape(kernel.shape), offset

    def grid_kernel(self):
        """The folded kernel as a `GridKernel`, output channels last."""
        flat = ops.convert_to_tensor(self._by_output(self.folded()[0]))
        limits = ops.convert_to_numpy(self._limits(flat))
        step = limits / (2 ** (self.weight_bits - 1) - 1)
        rounded = ops.convert_to_numpy(self._rounded_flat(flat))
        return GridKernel(np.round(rounded / step), step)

    def _rounded_flat(self, flat):
        return self._by_output(self._rounded(ops.reshape(flat, self.kernel.shape)))

    def reconstruct_kernel(self):
        return ops.convert_to_numpy(self._rounded(ops.convert_to_tensor(self.folded()[0])))

    def kernel_bits(self):
        scales = self._output_channels if self.granularity == "channel" else 1
        return math.prod(self.kernel.shape) * self.weight_bits + 32 * scales

    def storage_bits(self):
        bias_of_norm = self.batch_norm is not None and self.bias is None
        return super().storage_bits() + (32 * self._output_channels if bias_of_norm else 0)

    def expand(self):
        """The stock Keras layer with the rounded kernel, batch normalisation folded in."""
        self.check_built("expand")
        _, bias = self.folded()
        config = self.get_config()
        carried = {key: config[key] for key in (*self._carried, *self.source_arguments)}
        layer = self.source.from_config({**carried, "use_bias": bias is not None})
        layer.build(self._build_shape())
        layer.kernel.assign(self.reconstruct_kernel())
        if bias is not None:
            layer.bias.assign(bias)
        return layer

    def export_form(self):
        """For integer inputs, the layer with everything folded and its range known; for float ones
        the kernel of integers itself.
        """
        if self.weights_only:
            return self._stored_form()
        kernel, bias = self.folded()
        config = {**self.get_config(), "batch_norm": None, "use_bias": bias is not None}
        form = type(self).from_config(config)
        form.build(self._build_shape())
        form.kernel.assign(kernel)
        if bias is not None:
            form.bias.assign(bias)
        flat = ops.convert_to_tensor(self._by_output(kernel))
        form._known_limits = ops.convert_to_numpy(self._limits(flat))
        return form

    def _stored_form(self):
        """The form of a kernel of integers for float inputs: float, if LiteRT has no other."""
        return self.expand()

    @classmethod
    def fit_kernel(cls, kernel, **options):
        """Takes the trained kernel as it is; the grid follows its range.

        Args:
            kernel: Trained kernel.
            **options: The layer's arguments of its own.
        """
        return options, [kernel]

    @classmethod
    def from_layer(cls, layer, batch_norm=None, **options):
        """Starts from a trained Keras layer, and the trained batch normalisation behind it.

        Args:
            layer: A built layer of class `cls.source`.
            batch_norm: A built `keras.layers.BatchNormalization`, or `None`.
            **options: See `CompressedLayer.from_layer`. Regularizer and constraint of the kernel
                carry over: the kernel is the same.
        """
        for what in ("regularizer", "constraint"):
            name = f"{cls._prefix}_{what}"
            options.setdefault(name, _own(getattr(layer, name, None)))
        new = super().from_layer(layer, batch_norm=batch_norm, **options)
        if batch_norm is not None:
            own = new.batch_norm
            for old, variable in zip(batch_norm.variables, own.variables, strict=True):
                variable.assign(ops.convert_to_numpy(old))
        return new

    def get_config(self):
        norm = self.batch_norm
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "granularity": self.granularity,
            "batch_norm": None if norm is None else norm.get_config(),
            "weights_only": self.weights_only,
        }


def batch_norm_affine(batch_norm, bias=None):
    """`(scale, offset)` of each channel: what a batch normalisation makes of a product and bias.

    In inference, it gives `product * scale + offset`.

    Args:
        batch_norm: A built `keras.layers.BatchNormalization`.
        bias: The bias before it, not yet in the product; `None` for none.
    """
    deviation = ops.sqrt(
        ops.add(ops.cast(batch_norm.moving_variance, "float32"), batch_norm.epsilon)
    )
    scale = ops.divide(_value(batch_norm.gamma, 1.0), deviation)
    centre = ops.subtract(_value(bias, 0.0), ops.cast(batch_norm.moving_mean, "float32"))
    return scale, ops.add(_value(batch_norm.beta, 0.0), ops.multiply(centre, scale))


def _fresh(batch_norm):
    """An unbuilt copy of a batch normalisation, or of what its configuration says."""
    if batch_norm is None:
        return None
    if isinstance(batch_norm, keras.layers.BatchNormalization):
        batch_norm = batch_norm.get_config()
    if not isinstance(batch_norm, dict):
        raise ValueError(
            "`batch_norm` must be a keras.layers.BatchNormalization or its configuration; got "
            f"{batch_norm!r}."
        )
    # It is never called: its variables are those of the output channels.
    return keras.layers.BatchNormalization.from_config({**batch_norm, "axis": -1})


def _value(variable, otherwise):
    return otherwise if variable is None else ops.cast(variable, "float32")


def _own(constraint):
    """A constraint for another layer: one that has state (a pruning mask) is copied."""
    if not isinstance(constraint, keras.layers.Layer):
        return constraint
    state = {}
    constraint.save_own_variables(state)
    copy = type(constraint).from_config(constraint.get_config())
    copy.load_own_variables(state)
    return copy
