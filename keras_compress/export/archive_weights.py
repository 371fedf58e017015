"""One weight of an archive: the smallest of several lossless forms, and back again."""

import dataclasses
import struct
import zlib

import numpy as np

from keras_compress.export.archive_format import (
    CODED,
    DEFLATED,
    GRID,
    KINDS,
    RAW,
    SPARSE,
    TABLE,
    ArchiveError,
    inflated,
)
from keras_compress.layers.stored_kernel import grid_of
from keras_compress.sharing.gaps import MAX_BITS, gaps_of, positions_of
from keras_compress.sharing.huffman import MAX_SYMBOLS, HuffmanCode

#: Widths of a difference that are tried: what is shorter has more fillers, and a shorter table.
_GAP_BITS = (4, 5, 6, 7, 8)
_LEVEL = 9


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A weight as an archive holds it.

    Attributes:
        kind: Number of the storage kind.
        payload: Bytes.
        code_bits: Mean bits of a code, or `None`.
        gap_bits: Mean bits of a difference of positions, or `None`.
        entries: Number of codes.
    """

    kind: int
    payload: bytes
    code_bits: float | None = None
    gap_bits: float | None = None
    entries: int = 0


def encode(array):
    """The smallest form of an array.

    Args:
        array: numpy array of 1, 2, 4 or 8 bytes an element.

    Returns:
        An `Encoded`.
    """
    bits = bits_of(array)
    content = bits.tobytes()
    best = Encoded(RAW, content)
    deflated = zlib.compress(_planes(content, bits.itemsize), _LEVEL)
    if len(deflated) < len(content):
        best = Encoded(DEFLATED, deflated)
    for values, codes in _coded_forms(array, bits):
        for form in (_coded(values, codes), *_sparse(values, codes)):
            if len(form.payload) < len(best.payload):
                best = form
    return best


def decode(kind, cursor, shape, dtype):
    """The array of a payload; memory is a small multiple of the array and the payload.

    Args:
        kind: Number of the storage kind.
        cursor: `Cursor` at the start of the payload.
        shape: Shape of the array, which the caller has found to be acceptable.
        dtype: numpy dtype.

    Returns:
        numpy array.

    Raises:
        ArchiveError: if the payload is not one of such an array.
    """
    count = int(np.prod(shape, dtype="int64"))
    size = count * dtype.itemsize
    if kind == RAW:
        flat = np.frombuffer(cursor.take(size), _unsigned(dtype.itemsize))
    elif kind == DEFLATED:
        planes = inflated(cursor.take(cursor.left), size, cursor.what)
        flat = np.frombuffer(planes, "uint8").reshape(dtype.itemsize, count)
        flat = np.ascontiguousarray(flat.T).view(_unsigned(dtype.itemsize))
    elif kind in (CODED, SPARSE):
        values, k = _read_values(cursor, shape, dtype)
        codes = (_read_stream if kind == CODED else _read_few)(cursor, count, k)
        flat = values(codes)
    else:
        raise ArchiveError(
            f"{cursor.what}: storage kind {kind} is unknown; known are 0 to {len(KINDS) - 1}."
        )
    cursor.finish()
    return flat.reshape(-1).astype(f"u{dtype.itemsize}", copy=False).view(dtype).reshape(shape)


def bits_of(array):
    """The elements of an array as little-endian unsigned integers, flat."""
    array = np.ascontiguousarray(array)
    return (
        array.reshape(-1)
        .view(f"u{array.dtype.itemsize}")
        .astype(_unsigned(array.dtype.itemsize), copy=False)
    )


def _unsigned(itemsize):
    return np.dtype(f"<u{itemsize}")


def _planes(content, itemsize):
    """First bytes of all elements, then second ones, ...: exponents compress, mantissas do not."""
    return np.frombuffer(content, "uint8").reshape(-1, itemsize).T.tobytes()


# Codes: what they stand for, and how they are laid out.


def _coded_forms(array, bits):
    """`(bytes of the values, codes)` of each way in which few codes stand for the array."""
    table = _table_of(bits)
    if table is not None:
        yield table
    grid = _channel_grid(array, bits)
    if grid is not None:
        yield grid


def _table_of(bits):
    # Of arrays with many values a sample tells, and spares the sort.
    if not bits.size or len(np.unique(bits[:: 1 + bits.size // 10_000])) > MAX_SYMBOLS:
        return None
    distinct, codes = np.unique(bits, return_inverse=True)
    if len(distinct) > MAX_SYMBOLS:
        return None
    return struct.pack("<BH", TABLE, len(distinct)) + distinct.tobytes(), codes


def _channel_grid(array, bits):
    """Integers times a scale for each output channel, if that gives the array to the last bit."""
    if array.dtype != "float32" or array.ndim < 2 or not 1 < array.shape[-1] < array.size:
        return None
    columns = array.reshape(-1, array.shape[-1])
    ints, scales = np.empty(columns.shape, "int16"), np.empty(columns.shape[1], "float32")
    for channel, column in enumerate(columns.T):
        found = _exact_grid(column)
        if found is None:
            return None
        ints[:, channel], scales[channel] = found
    low = int(ints.min())
    codes = (ints - low).ravel()
    if not np.array_equal(bits_of(ints.astype("float32") * scales), bits):
        return None
    k = int(codes.max()) + 1
    head = struct.pack("<BHhI", GRID, k, low, len(scales))
    return head + scales.astype("<f4").tobytes(), codes


def _exact_grid(column):
    values = np.unique(column)
    if len(values) > 255 or not np.isfinite(values).all():
        return None
    found = grid_of(column)
    if found is None:
        return None
    ints, step = found[0].astype("float32"), found[1]
    # The step is known to rounding only.
    for ulps in (0, 1, -1, 2, -2):
        scale = step
        for _ in range(abs(ulps)):
            scale = np.nextafter(scale, np.float32(np.inf * ulps))
        if np.array_equal(ints * scale, column):
            return ints, scale
    return None


def _coded(values, codes):
    counts = np.bincount(codes)
    code = HuffmanCode.of_counts(counts)
    stream = _stream(code, codes)
    return Encoded(CODED, values + stream, code.mean_length(counts), None, len(codes))


def _sparse(values, codes):
    """The codes that are not the most frequent one, at their positions."""
    counts = np.bincount(codes)
    background = int(np.argmax(counts))
    if 2 * counts[background] < len(codes) or counts[background] == len(codes):
        return
    positions = np.flatnonzero(codes != background)
    costs = {}
    for bits in _GAP_BITS:
        gaps, real = gaps_of(positions, bits)
        gap_counts = np.bincount(gaps)
        entry_counts = counts.copy()
        entry_counts[background] = len(gaps) - len(positions)
        cost = sum(
            float(np.dot(each, HuffmanCode.of_counts(each).lengths)) + 4 * len(each)
            for each in (gap_counts, entry_counts)
        )
        costs[bits] = (cost, gaps, real, gap_counts, entry_counts)
    bits = min(costs, key=lambda bits: costs[bits][0])
    _, gaps, real, gap_counts, entry_counts = costs[bits]
    entries = np.full(len(gaps), background)
    entries[real] = codes[positions]
    of_codes, of_gaps = HuffmanCode.of_counts(entry_counts), HuffmanCode.of_counts(gap_counts)
    head = struct.pack("<HBQ", background, bits, len(gaps))
    yield Encoded(
        SPARSE,
        values + head + _stream(of_codes, entries) + _stream(of_gaps, gaps),
        of_codes.mean_length(entry_counts),
        of_gaps.mean_length(gap_counts),
        len(gaps),
    )


def _stream(code, symbols):
    packed = code.encode(symbols)
    lengths = code.lengths
    nibbles = np.pad(lengths, (0, len(lengths) % 2))
    halves = (nibbles[::2] | nibbles[1::2] << 4).astype("uint8")
    return struct.pack("<HQ", len(lengths), len(packed)) + halves.tobytes() + packed


def _read_stream(cursor, count, most):
    """`count` symbols below `most`."""
    size, length = cursor.unpack("HQ")
    if not 1 <= size <= min(most, MAX_SYMBOLS):
        raise ArchiveError(f"{cursor.what}: a code of {size} symbols, and 1 to {most} are allowed.")
    halves = np.frombuffer(cursor.take(-(-size // 2)), "uint8")
    lengths = np.stack([halves & 15, halves >> 4], axis=1).ravel()[:size]
    try:
        return HuffmanCode(lengths).decode(cursor.take(length), count)
    except ArchiveError:
        raise
    except ValueError as error:
        raise ArchiveError(f"{cursor.what}: {error}") from error


def _read_values(cursor, shape, dtype):
    """`(function from codes to elements as bits, number of codes)`."""
    form, k = cursor.unpack("BH")
    if not 1 <= k <= MAX_SYMBOLS or form not in (TABLE, GRID):
        raise ArchiveError(f"{cursor.what}: values of form {form}, {k} of them: unknown.")
    if form == TABLE:
        table = np.frombuffer(cursor.take(k * dtype.itemsize), _unsigned(dtype.itemsize))
        return table.__getitem__, k
    low, channels = cursor.unpack("hI")
    if dtype != "float32" or not shape or channels != shape[-1]:
        raise ArchiveError(f"{cursor.what}: a grid of {channels} channels does not fit {shape}.")
    scales = np.frombuffer(cursor.take(4 * channels), "<f4")

    def on_grid(codes):
        # An infinite scale would be someone's joke; it must not warn.
        with np.errstate(all="ignore"):
            ints = codes.reshape(-1, channels).astype("float32") + np.float32(low)
            return bits_of(ints * scales)

    return on_grid, k


def _read_few(cursor, count, k):
    background, bits, entries = cursor.unpack("HBQ")
    if background >= k or not 1 <= bits <= MAX_BITS or entries > count:
        raise ArchiveError(
            f"{cursor.what}: {entries} entries among {count}, on code {background} of {k}, with "
            f"gaps of {bits} bits: this cannot be."
        )
    few = _read_stream(cursor, entries, k)
    positions = positions_of(_read_stream(cursor, entries, 2**bits))
    if entries and positions[-1] >= count:
        raise ArchiveError(f"{cursor.what}: entry at {positions[-1]}, behind the end, {count}.")
    codes = np.full(count, background, "uint16")
    codes[positions] = few
    return codes
