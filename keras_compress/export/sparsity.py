"""Sparse constants in the schema's own encoding."""

import numpy as np


def csr(schema, array):
    """Encodes an array whose last axis is sparse.

    Args:
        schema: The schema module.
        array: Array of any rank.

    Returns:
        `(values, parameters)`: the entries that are not zero, in order, and `SparsityParametersT`.
    """
    rows = array.reshape(-1, array.shape[-1])
    kept = rows != 0
    segments = np.concatenate([[0], np.cumsum(kept.sum(1))])
    metadata = [_dense(schema, length) for length in array.shape[:-1]]
    sparse = schema.DimensionMetadataT()
    sparse.format = schema.DimensionType.SPARSE_CSR
    sparse.arraySegmentsType, sparse.arraySegments = _vector(schema, segments)
    sparse.arrayIndicesType, sparse.arrayIndices = _vector(schema, np.nonzero(kept)[1])
    parameters = schema.SparsityParametersT()
    parameters.traversalOrder = list(range(array.ndim))
    parameters.blockMap = []
    parameters.dimMetadata = [*metadata, sparse]
    return rows[kept], parameters


def _dense(schema, length):
    metadata = schema.DimensionMetadataT()
    metadata.format = schema.DimensionType.DENSE
    metadata.denseSize = int(length)
    return metadata


def _vector(schema, values):
    """Integers in the narrowest of the schema's types that holds them."""
    largest = int(values.max(initial=0))
    name, dtype = next(
        (name, dtype)
        for name, dtype in (("Uint8", np.uint8), ("Uint16", np.uint16), ("Int32", np.int32))
        if largest <= np.iinfo(dtype).max
    )
    vector = getattr(schema, f"{name}VectorT")()
    vector.values = values.astype(dtype)
    return getattr(schema.SparseIndexVector, f"{name}Vector"), vector
