"""ap2: the nearest power of two, so that a product is a shift."""

from keras import ops

from keras_compress.quantizers.powers import exact_power


def ap2(x):
    """Approximate power of two: `sign(x) 2^round(log2|x|)`, and 0 for 0.

    Nearest on the logarithmic scale, exact powers of two in float32. The gradient is straight
    through (identity).

    Args:
        x: Tensor of floats.

    Returns:
        A tensor like `x`.

    Reference:
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016.

    Example:

    >>> import keras
    >>> keras.ops.convert_to_numpy(ap2([0.75, -3.0, 0.0, 5.0]))
    array([ 1., -4.,  0.,  4.], dtype=float32)
    """
    x = ops.convert_to_tensor(x)
    exact = ops.cast(ops.stop_gradient(x), "float32")
    size = ops.abs(exact)
    exponent = ops.round(ops.log2(ops.where(ops.equal(size, 0.0), 1.0, size)))
    power = ops.cast(ops.multiply(ops.sign(exact), exact_power(exponent)), x.dtype)
    # `x + stop_gradient(power - x)` would round: the zero added here leaves the power exact.
    return ops.add(power, ops.subtract(x, ops.stop_gradient(x)))
