"""Sparse constants in the schema's own encoding."""

import numpy as np


def encode(array):
    """Compressed sparse rows of an array whose last axis is sparse.

    Args:
        array: Array of any rank.

    Returns:
        `(values, segments, indices)`: the entries that are not zero, in order; where each row
        begins in them; and their places in the row. The integers are of the narrowest type that
        the schema has.
    """
    rows = array.reshape(-1, array.shape[-1])
    kept = rows != 0
    if not kept.any():
        # A tensor without a buffer would be no constant.
        kept[0, 0] = True
    segments = np.concatenate([[0], np.cumsum(kept.sum(1))])
    return rows[kept], _narrowest(segments), _narrowest(np.nonzero(kept)[1])


def csr(schema, array):
    """Encodes an array whose last axis is sparse.

    Args:
        schema: The schema module.
        array: Array of any rank.

    Returns:
        `(values, parameters)`: the entries that are not zero, in order, and `SparsityParametersT`.
    """
    values, segments, indices = encode(array)
    metadata = [_dense(schema, length) for length in array.shape[:-1]]
    sparse = schema.DimensionMetadataT()
    sparse.format = schema.DimensionType.SPARSE_CSR
    sparse.arraySegmentsType, sparse.arraySegments = _vector(schema, segments)
    sparse.arrayIndicesType, sparse.arrayIndices = _vector(schema, indices)
    parameters = schema.SparsityParametersT()
    parameters.traversalOrder = list(range(array.ndim))
    parameters.blockMap = []
    parameters.dimMetadata = [*metadata, sparse]
    return values, parameters


def index_bytes(parameters):
    """Bytes of the positions in `SparsityParametersT`."""
    return sum(
        np.asarray(part.values).nbytes
        for metadata in parameters.dimMetadata
        for part in (metadata.arraySegments, metadata.arrayIndices)
        if part is not None
    )


def _dense(schema, length):
    metadata = schema.DimensionMetadataT()
    metadata.format = schema.DimensionType.DENSE
    metadata.denseSize = int(length)
    return metadata


def _narrowest(values):
    largest = int(values.max(initial=0))
    dtypes = (np.uint8, np.uint16, np.int32)
    return values.astype(next(dtype for dtype in dtypes if largest <= np.iinfo(dtype).max))


def _vector(schema, values):
    name = f"{values.dtype.name.capitalize()}Vector"
    vector = getattr(schema, f"{name}T")()
    vector.values = values
    return getattr(schema.SparseIndexVector, name), vector
