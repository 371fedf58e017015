"""Weights shared by hashing: `V[i, j] = w[h(i, j)] * xi(i, j)`, with nothing stored but `w`.

`h`, into `buckets` buckets, and the sign `xi` come from one hash: a number `m` in
`[0, 2 * buckets)` stands for bucket `m`, sign +1 if `m < buckets`, else for bucket `m - buckets`,
sign -1. That is an index into `concatenate([w, -w])`.

The hash is fixed for good, since it is part of every saved model. With `mix` a bijection of 32-bit
integers and all sums modulo 2^32,

    m = mix(mix(i_0 + key_0) + mix(i_1 + key_1) + ...) mod (2 * buckets)

where the last `mix` is read as a signed integer, `mod` is floored, and the key of each axis is a
mix of the seed and the shape. Each `mix` of one axis is a vector, so that the large array sees one
addition, one `mix` and one `mod`. Only ADD, MUL, XOR, RIGHT_SHIFT and FLOOR_MOD on int32 are
needed, which LiteRT has as builtins too.

Functional hashing fetches several values for each entry, by independent hashes, and recovers the
entry from them: `V[i, j] = f(xi_1 w[h_1(i, j)], ..., xi_U w[h_U(i, j)])`, with `f` a small network
that all entries share.

Reference:
    Chen, Wilson, Tyree, Weinberger, Chen, "Compressing Neural Networks with the Hashing Trick",
    2015. The mixing constants are Wellons's `lowbias32`, 2018.
    Shi, Feng, Zhu, "Functional Hashing for Compressing Neural Networks", 2016.
"""

import functools

import keras
import numpy as np
from keras import ops
from scipy.sparse.linalg import LinearOperator, lsqr

from keras_compress import validation

_GOLDEN = 0x9E3779B9
ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1))
# `2 * buckets` is an int32.
_MAX_BUCKETS = 2**30 - 1


def signed_buckets(shape, buckets, seed):
    """Hash of every index of an array, bucket and sign in one number, as a numpy array.

    Args:
        shape: Shape of the virtual array.
        buckets: Number of buckets.
        seed: Integer in [0, 2**32).

    Returns:
        int32 array of that shape with values in `[0, 2 * buckets)`: `m` is bucket `m` with sign +1
        below `buckets`, and bucket `m - buckets` with sign -1 from there on.

    Raises:
        ValueError: if the seed is not in [0, 2**32), or there are 2**30 buckets or more.
    """
    total = functools.reduce(np.add.outer, axis_hashes(shape, seed))
    return _mix(total).view(np.int32) % np.int32(2 * _check_buckets(buckets))


def signed_buckets_tensor(shape, buckets, seed):
    """`signed_buckets` in `keras.ops`, bit for bit: made on the device, no large constant.

    Args:
        shape: Shape of the virtual array.
        buckets: Number of buckets.
        seed: Integer in [0, 2**32).

    Returns:
        int32 tensor.
    """
    total = None
    for axis, vector in enumerate(axis_hashes(shape, seed)):
        lined_up = [-1 if other == axis else 1 for other in range(len(shape))]
        vector = ops.reshape(_int32(vector), lined_up)
        total = vector if total is None else ops.add(total, vector)
    for shift, factor in ROUNDS:
        # int32, since torch and LiteRT have little arithmetic of unsigned integers; the mask makes
        # the arithmetic shift a logical one.
        shifted = ops.right_shift(total, _int32(shift))
        total = ops.bitwise_xor(total, ops.bitwise_and(shifted, _int32((1 << (32 - shift)) - 1)))
        if factor != 1:
            total = ops.multiply(total, _int32(factor))
    return ops.mod(total, _int32(2 * _check_buckets(buckets)))


def buckets_and_signs(shape, buckets, seed):
    """The hash `h` and the sign `xi` of every index.

    Args:
        shape: Shape of the virtual array.
        buckets: Number of buckets.
        seed: Integer in [0, 2**32).

    Returns:
        `(h, xi)`: int32 array in `[0, buckets)`, float32 array of -1 and 1.
    """
    signed = signed_buckets(shape, buckets, seed)
    positive = signed < buckets
    return np.where(positive, signed, signed - buckets), np.where(positive, 1, -1).astype("float32")


def expand_values(values, shape, seed):
    """The virtual array of a vector of values, as a numpy array.

    Args:
        values: Vector `w`, one value a bucket.
        shape: Shape of the virtual array.
        seed: Integer in [0, 2**32).
    """
    values = np.asarray(values)
    return np.concatenate([values, -values])[signed_buckets(shape, len(values), seed)]


def expand_values_tensor(values, shape, seed, fused=False):
    """`expand_values` in `keras.ops`, with the bucket sum as gradient.

    The hash is made again in the backward pass, rather than kept from the forward pass.

    Args:
        values: Tensor `w`, one value a bucket.
        shape: Shape of the virtual array.
        seed: Integer in [0, 2**32).
        fused: On TensorFlow, whether hash and gather, and hash and bucket sum, are each compiled by
            XLA, whatever the code around does: several times faster, but a graph saved with them
            runs only where XLA does. Of no effect on other backends.
    """
    lookup, bucket_sum = _passes(
        tuple(shape), int(values.shape[0]), seed, fused and keras.backend.backend() == "tensorflow"
    )

    @ops.custom_gradient
    def expanded(table):
        def gradient(*arguments, upstream=None):
            return bucket_sum(arguments[0] if upstream is None else upstream)

        return lookup(table), gradient

    # Outside of the custom gradient: TensorFlow's takes tensors only, no variables.
    return expanded(ops.concatenate([values, ops.negative(values)]))


def hash_seeds(seed, count):
    """Seeds of independent hashes, the first of which is the seed itself."""
    state = _uint32(validation.seed(seed))
    return [int(seed), *(int(_mix(state + _uint32(u * _GOLDEN))[0]) for u in range(1, count))]


def fetch_values(values, shape, seeds):
    """What each entry fetches, as a numpy array of that shape and a last axis of the hashes."""
    return np.stack([expand_values(values, shape, seed) for seed in seeds], axis=-1)


def recover_tensor(fetched, network):
    """Applies the network to the last axis of what was fetched, and drops it.

    Args:
        fetched: Tensor `(..., hashes)`.
        network: List of weights and biases in turn, layer by layer; tanh between layers, one output
            at the end. An empty list is the sum over the hashes, divided by the root of their
            number.

    Returns:
        Tensor `(...)`.
    """
    if not network:
        return ops.sum(fetched, axis=-1) * fetched.shape[-1] ** -0.5
    for layer in range(0, len(network), 2):
        if layer:
            fetched = ops.tanh(fetched)
        fetched = ops.add(ops.matmul(fetched, network[layer]), network[layer + 1])
    return fetched[..., 0]


def fit_values(array, buckets, seed):
    """The values whose virtual array is nearest to `array` in the least-squares sense.

    They are the means of `xi * array` over each bucket; 0 where a bucket is empty.

    Args:
        array: numpy array.
        buckets: Number of buckets.
        seed: Integer in [0, 2**32).

    Returns:
        float32 vector with `buckets` entries.
    """
    index, sign = buckets_and_signs(array.shape, buckets, seed)
    index = index.ravel()
    sums = np.bincount(index, weights=(sign * array).ravel(), minlength=buckets)
    counts = np.bincount(index, minlength=buckets)
    return (sums / np.maximum(counts, 1)).astype("float32")


def fit_fetched_values(array, buckets, seeds):
    """The values that `recover_tensor`, without a network, makes the array nearest to `array` of.

    Least squares by conjugate gradients; for one hash they are the means of `fit_values`.

    Args:
        array: numpy array.
        buckets: Number of buckets.
        seeds: Seeds of the hashes.

    Returns:
        float32 vector with `buckets` entries.
    """
    if len(seeds) == 1:
        return fit_values(array, buckets, seeds[0])
    hashes = [buckets_and_signs(array.shape, buckets, seed) for seed in seeds]
    pairs = [(h.ravel(), xi.ravel() * len(seeds) ** -0.5) for h, xi in hashes]

    def gathered(values):
        return sum(values[h] * xi for h, xi in pairs)

    def bucket_sum(entries):
        return sum(np.bincount(h, weights=xi * entries, minlength=buckets) for h, xi in pairs)

    design = LinearOperator(
        (array.size, buckets), matvec=gathered, rmatvec=bucket_sum, dtype="float64"
    )
    return lsqr(design, array.ravel(), atol=1e-8, btol=1e-8, iter_lim=100)[0].astype("float32")


@functools.lru_cache(maxsize=128)
def _passes(shape, buckets, seed, fused):
    """Forward and backward pass of `expand_values_tensor`.

    Kept, because each call in eager mode would compile a new `tf.function` otherwise.
    """

    def lookup(table):
        return ops.take(table, signed_buckets_tensor(shape, buckets, seed))

    def bucket_sum(upstream):
        index = ops.reshape(signed_buckets_tensor(shape, buckets, seed), (-1,))
        terms = ops.reshape(upstream, (-1,))
        # Half precision would lose most of a long sum.
        if keras.backend.standardize_dtype(terms.dtype) in ("float16", "bfloat16"):
            terms = ops.cast(terms, "float32")
        return ops.cast(ops.segment_sum(terms, index, 2 * buckets), upstream.dtype)

    if not fused:
        return lookup, bucket_sum
    import tensorflow as tf

    # Without fusion each step of the hash is a pass over memory, and TensorFlow's
    # unsorted_segment_sum of scalars takes eight times as long as XLA's.
    return tuple(
        tf.function(each, jit_compile=True, autograph=False) for each in (lookup, bucket_sum)
    )


def axis_hashes(shape, seed):
    """One uint32 vector an axis, each a mix of its indices, the seed and the shape."""
    state = _mix(_uint32(validation.seed(seed)))
    for size in shape:
        state = _mix(state + _uint32(size * _GOLDEN))
    keys = [_mix(state + _uint32((axis + 1) * _GOLDEN)) for axis in range(len(shape))]
    return [_mix(key + _uint32(np.arange(size))) for key, size in zip(keys, shape, strict=True)]


def _mix(h):
    for shift, factor in ROUNDS:
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h


def _uint32(value):
    """At least one axis: numpy warns of the overflow of scalars, which is wanted here."""
    return np.atleast_1d(np.asarray(value) % 2**32).astype(np.uint32)


def _int32(value):
    """A tensor with the 32 bits of an unsigned integer or uint32 array."""
    return ops.convert_to_tensor(np.asarray(value, np.uint32).view(np.int32))


def _check_buckets(buckets):
    buckets = validation.positive_int("buckets", buckets)
    if buckets > _MAX_BUCKETS:
        raise ValueError(
            f"`buckets` must be at most {_MAX_BUCKETS} (an index and its sign are one int32); got "
            f"buckets={buckets}. Compress more."
        )
    return buckets
