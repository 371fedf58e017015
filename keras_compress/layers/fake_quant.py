"""FakeQuant: rounds activations to the 8-bit grid that they will have in the .tflite."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation

#: How far from midway between two steps, in steps, a value counts as midway.
MIDWAY_ERROR = 5e-4


@keras.saving.register_keras_serializable(package="keras_compress")
class FakeQuant(keras.layers.Layer):
    """Rounds its input to `2**bits` equal steps between a low and a high end (affine grid).

    The range is a moving average of the batches' smallest and largest values, read while training;
    zero always lies in it, on the grid. The gradient passes straight through inside of the range
    and is zero outside (that of TensorFlow's fake-quantisation operations, which this is under
    TensorFlow). Before any batch was seen, inputs pass unchanged.

    Tensors that must share a range (inputs of a concatenation) are given to one layer, each as a
    site of its own: the range is the smallest that covers the ranges of all.

    Args:
        bits: Bits of the grid, 2 to 16.
        sites: Number of tensors that share the range.
        decay: Weight of the past in the moving average; the first `1 / (1 - decay)` batches count
            equally.
        limits: `(low, high)`: a fixed range, such as that of a sigmoid, or `None`.
        **kwargs: `name`, `dtype`, as in Keras.

    Call arguments:
        inputs: Tensor of floats.
        site: Which of the `sites` the tensor is. `None` stands for averages of values on the grid:
            the range is not read, and values midway between two steps go where LiteRT's average
            pooling rounds them, away from the integer 0.
        training: Whether the range is read.

    Input shape:
        Any.

    Output shape:
        The same.

    Raises:
        ValueError: if `bits`, `sites` or `decay` is out of its interval, or `limits` do not hold
            zero.

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018.

    Example:

    >>> layer = FakeQuant(bits=2, limits=(0.0, 3.0))
    >>> [float(y) for y in layer(np.array([-1.0, 0.4, 1.6, 9.0], "float32"))]
    [0.0, 0.0, 2.0, 3.0]
    """

    def __init__(self, bits=8, sites=1, decay=0.99, limits=None, **kwargs):
        super().__init__(**kwargs)
        self.bits = validation.integer("bits", bits, 2, 16, self)
        self.sites = validation.positive_int("sites", sites, self)
        self.decay = validation.number("decay", decay, 0, 1, high_open=True, owner=self)
        self.limits = None if limits is None else tuple(float(limit) for limit in limits)
        if self.limits is not None and not self.limits[0] <= 0 <= self.limits[1]:
            raise ValueError(
                f"{validation.prefix(self)}`limits` must be (low, high) around zero, which every "
                f"grid holds; got limits={limits!r}."
            )
        #: Whether calls outside of training read the range too.
        self.observing = False
        self._exported = False
        self.supports_masking = True

    def build(self, input_shape):
        if self.limits is None:
            for name in ("low", "high", "batches"):
                self._add_state(name, (self.sites,))
            self._add_state("frozen", ())
        self.built = True

    def _add_state(self, name, shape):
        # In float32: an average of many batches moves by less than half precision holds.
        state = self.add_weight(
            name=name,
            shape=shape,
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        setattr(self, name, state)

    def call(self, inputs, site=0, training=None):
        if self.limits is not None:
            return self._round(inputs, *self.limits, site)
        observed = site is not None and (training or self.observing)
        if observed:
            self._observe(ops.stop_gradient(inputs), site)
        low, high = ops.min(self.low), ops.max(self.high)
        seen = ops.greater(high, low)
        rounded = self._round(inputs, low, ops.where(seen, high, ops.add(low, 1.0)), site)
        # Having just seen them, the range holds the inputs, were they all zero.
        return rounded if observed else ops.where(seen, rounded, inputs)

    def _round(self, inputs, low, high, site):
        if site is None and not self._exported:
            return _round_averages(inputs, low, high, self.bits)
        return fake_quant(inputs, low, high, self.bits)

    def _observe(self, inputs, site):
        here = np.eye(self.sites, dtype="float32")[site]
        old = ops.convert_to_tensor(self.batches)
        # A first batch is read whatever is frozen: no range is worse than a rough one.
        moves = ops.where(ops.equal(old, 0.0), here, here * ops.subtract(1.0, self.frozen))
        batches = ops.add(old, moves)
        rate = ops.maximum(ops.divide(1.0, ops.maximum(batches, 1.0)), 1.0 - self.decay)
        rate = ops.multiply(rate, moves)
        self.batches.assign(batches)
        move_average(self.low, ops.minimum(ops.cast(ops.min(inputs), "float32"), 0.0), rate)
        move_average(self.high, ops.maximum(ops.cast(ops.max(inputs), "float32"), 0.0), rate)

    def range(self):
        """`(low, high)` as floats.

        Raises:
            ValueError: if no batch was seen yet.
        """
        if self.limits is not None:
            return self.limits
        low, high = float(ops.min(self.low)), float(ops.max(self.high))
        if not high > low:
            raise ValueError(
                f"FakeQuant '{self.name}' has seen no values other than zero, so that its range is "
                "not known. Train the model (fit), or give quantize_aware() `data` to read the "
                "ranges from."
            )
        return low, high

    def export_form(self):
        """The layer with its range fixed."""
        form = FakeQuant(self.bits, limits=self.range(), name=self.name, dtype=self.dtype_policy)
        form._exported = True
        return form

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "bits": self.bits,
            "sites": self.sites,
            "decay": self.decay,
            "limits": self.limits,
        }


def _round_averages(inputs, low, high, bits):
    """`fake_quant` for averages: midway values go away from the integer 0, as in LiteRT."""
    exact = ops.cast(ops.stop_gradient(inputs), "float32")
    low, high = ops.cast(low, "float32"), ops.cast(high, "float32")
    bottom, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = ops.divide(ops.subtract(high, low), top - bottom)
    zero = ops.add(ops.round(ops.divide(ops.negative(low), step)), float(bottom))
    code = ops.add(ops.divide(exact, step), zero)
    # Midway up to the error of float32.
    sizes = ops.floor(ops.add(ops.abs(code), 0.5 + MIDWAY_ERROR))
    code = ops.clip(ops.multiply(ops.sign(code), sizes), bottom, top)
    rounded = ops.cast(ops.multiply(ops.subtract(code, zero), step), inputs.dtype)
    # Averages of what lies in the range lie in it: no gradient is cut off.
    return ops.add(rounded, ops.subtract(inputs, ops.stop_gradient(inputs)))


def move_average(variable, value, rate):
    """One step of a moving average, held by a variable."""
    old = ops.convert_to_tensor(variable)
    value = ops.cast(ops.stop_gradient(value), old.dtype)
    variable.assign(ops.add(old, ops.multiply(rate, ops.subtract(value, old))))


def fake_quant(inputs, low, high, bits, narrow=False, axis=None):
    """Rounds a tensor to the grid of `bits` between two ends.

    Args:
        inputs: Tensor of floats.
        low: Scalar, or a vector along `axis`.
        high: Likewise.
        bits: Bits of the grid.
        narrow: Whether the lowest integer is left out, so that a symmetric range has a symmetric
            grid.
        axis: The axis along which the ends are given, or `None`.
    """
    return keras.quantizers.fake_quant_with_min_max_vars(
        inputs, low, high, num_bits=bits, narrow_range=narrow, axis=axis
    )
