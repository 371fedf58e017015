"""Taking shared entries from a table, with the bucket sum as gradient."""

import functools

import keras
from keras import ops


def shared_take(table, index, fused=False):
    """`table[index]`, whose gradient sums over all places that take the same row.

    Args:
        table: Float tensor `(rows, ...)`.
        index: int32 tensor.
        fused: On TensorFlow, whether XLA compiles the lookup and the bucket sum, whatever the code
            around does: several times faster, but a graph saved with them runs only where XLA does.
            Of no effect on other backends.
    """
    lookup, bucket_sum = _passes(
        tuple(table.shape), fused and keras.backend.backend() == "tensorflow"
    )

    @ops.custom_gradient
    def taken(entries):
        def gradient(*arguments, upstream=None):
            return bucket_sum(arguments[0] if upstream is None else upstream, index)

        return lookup(entries, index), gradient

    return taken(table)


@functools.lru_cache(maxsize=128)
def _passes(shape, fused):
    """Forward and backward pass: kept, since each call would compile a new `tf.function`."""

    def lookup(table, index):
        return ops.take(table, index, axis=0)

    def bucket_sum(upstream, index):
        rows = ops.reshape(upstream, (-1, *shape[1:]))
        return ops.segment_sum(rows, ops.reshape(index, (-1,)), shape[0])

    if not fused:
        return lookup, bucket_sum
    import tensorflow as tf

    # TensorFlow's gather of scalars and unsorted_segment_sum take several times as long as XLA's.
    return tuple(
        tf.function(each, jit_compile=True, autograph=False) for each in (lookup, bucket_sum)
    )
