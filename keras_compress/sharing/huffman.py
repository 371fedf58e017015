"""Canonical Huffman codes of integers, written and read by many lanes at a time.

A stream of `n` symbols is cut into lanes of as many symbols each; the lanes' bits follow one
another without padding, and only the lanes' lengths are stored with them (a byte or so for each
256 symbols). All lanes are decoded in step, one table lookup a symbol, so that the cost of a numpy
call is shared by up to 4096 symbols.
"""

import dataclasses

import numpy as np

from keras_compress import validation

#: Longest code, and so bits of the lookup table.
MAX_LENGTH = 15
#: Most different symbols: far fewer than codes, so that the limit of length costs next to nothing.
MAX_SYMBOLS = 4096
_MAX_LANES = 4096
_LANE_SYMBOLS = 256
#: Symbols that are written at once.
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class HuffmanCode:
    """A canonical prefix code: shorter codes first, among equal lengths by symbol.

    A code of one symbol takes no bits.

    Args:
        lengths: Bits of each symbol from 0, at most 15; 0 where a symbol does not occur. If only
            one occurs, its length is 1.

    Raises:
        ValueError: if these are not lengths of a complete prefix code.

    Reference:
        Huffman, "A Method for the Construction of Minimum-Redundancy Codes", 1952.

    Example:

    >>> code = HuffmanCode.of_counts([5, 2, 1])
    >>> code.lengths.tolist()
    [1, 2, 2]
    >>> packed = code.encode([0, 2, 1, 0])
    >>> code.decode(packed, 4).tolist()
    [0, 2, 1, 0]
    """

    lengths: np.ndarray

    def __post_init__(self):
        lengths = np.asarray(self.lengths)
        used = lengths[lengths > 0].astype("int64")
        if lengths.ndim != 1 or not 1 <= lengths.size <= MAX_SYMBOLS or not used.size:
            raise ValueError(
                f"HuffmanCode: `lengths` must be a list of 1 to {MAX_SYMBOLS} lengths, of which "
                f"some are positive; got shape {lengths.shape}, {used.size} positive."
            )
        # Kraft: a complete code leaves no pattern of bits without a symbol.
        whole = lengths.max() <= MAX_LENGTH and lengths.min() >= 0
        filled = whole and int(np.sum(2 ** (MAX_LENGTH - used))) == 2**MAX_LENGTH
        if not filled and not (used.size == 1 and used[0] == 1):
            raise ValueError(
                "HuffmanCode: `lengths` must be those of a complete prefix code (sum of "
                f"2**-length is 1) of at most {MAX_LENGTH} bits; got {lengths.tolist()[:16]}."
            )
        object.__setattr__(self, "lengths", lengths.astype("uint8"))

    @classmethod
    def of_counts(cls, counts):
        """The best code for symbols that occur so often.

        Args:
            counts: Integers >= 0: how often each symbol from 0 occurs.
        """
        counts = np.asarray(counts)
        if counts.ndim != 1 or counts.size > MAX_SYMBOLS or not np.any(counts > 0):
            raise ValueError(
                f"HuffmanCode: `counts` must be a list of at most {MAX_SYMBOLS} counts, some of "
                f"them positive; got shape {counts.shape}."
            )
        lengths = np.zeros(counts.shape, "uint8")
        present = np.flatnonzero(counts)
        lengths[present] = _package_merge(counts[present], MAX_LENGTH)
        return cls(lengths)

    @property
    def lone(self):
        """The only symbol of the code, or `None`."""
        present = np.flatnonzero(self.lengths)
        return int(present[0]) if present.size == 1 else None

    def mean_length(self, counts):
        """Bits a symbol, for symbols that occur so often."""
        if self.lone is not None:
            return 0.0
        return float(np.dot(counts, self.lengths[: len(counts)]) / np.sum(counts))

    def encode(self, symbols):
        """Packs symbols into bytes: lengths of the lanes, then their bits.

        Args:
            symbols: Integers, each with a code.
        """
        symbols = np.asarray(symbols).ravel()
        if self.lone is not None or not symbols.size:
            return b""
        lengths = self.lengths.astype("int64")
        codes = self._codes()
        lanes, per_lane = _lanes(symbols.size)
        lane_bits = np.empty(lanes, "int64")
        counts = np.bincount(symbols, minlength=len(lengths))
        words = np.zeros(int(np.dot(counts, lengths)) // 32 + 3, "uint64")
        step = per_lane * max(1, _CHUNK // per_lane)
        start = 0
        for first in range(0, symbols.size, step):
            part = symbols[first : first + step]
            bits = lengths[part]
            borders = np.arange(0, part.size, per_lane)
            sums = np.add.reduceat(bits, borders)
            lane_bits[first // per_lane :][: len(sums)] = sums
            ends = start + np.cumsum(bits)
            _add_bits(words, ends - bits, bits, codes[part])
            start = int(ends[-1])
        stream = words.astype(">u4").tobytes()[: -(-start // 8)]
        return _pack_lane_bits(lane_bits) + stream

    def decode(self, packed, count):
        """Unpacks `count` symbols; the cost is that of `count`, whatever the bytes hold.

        Args:
            packed: Bytes of `encode`.
            count: Number of symbols.

        Returns:
            uint16 array.

        Raises:
            ValueError: if the bytes are not those of so many symbols.
        """
        if self.lone is not None or not count:
            if len(packed):
                raise ValueError("Huffman stream: there are bits where there should be none.")
            return np.full(count, self.lone or 0, "uint16")
        lanes, per_lane = _lanes(count)
        lane_bits, stream = _unpack_lane_bits(packed, lanes)
        ends = np.cumsum(lane_bits)
        if -(-int(ends[-1]) // 8) != len(stream):
            raise ValueError(
                f"Huffman stream: its lanes have {ends[-1]} bits; {len(stream)} bytes are there."
            )
        windows = _windows(stream)
        table, bits = self._table()
        positions = (ends - lane_bits).astype("uint32" if len(stream) < 2**28 else "int64")
        symbols = np.empty((per_lane, lanes), "uint16")
        last = count - (lanes - 1) * per_lane
        if last == per_lane:
            _advance(positions, windows, table, bits, symbols)
        else:
            _advance(positions, windows, table, bits, symbols[:last])
            # The last lane ends sooner than the others.
            _advance(positions[:-1], windows, table, bits, symbols[last:, :-1])
        if not np.array_equal(positions, ends):
            raise ValueError("Huffman stream: a lane does not end where the next one begins.")
        return np.ascontiguousarray(symbols.T).reshape(-1)[:count]

    def _codes(self):
        """Code of each symbol, in its low bits."""
        order = self._canonical()
        lengths = self.lengths[order].astype("int64")
        # Each code, at full width, begins where those before it end.
        filled = np.cumsum(2 ** (MAX_LENGTH - lengths)) - 2 ** (MAX_LENGTH - lengths)
        codes = np.zeros(self.lengths.shape, "uint64")
        codes[order] = filled >> (MAX_LENGTH - lengths)
        return codes

    def _canonical(self):
        """Symbols in the order of their codes."""
        present = np.flatnonzero(self.lengths)
        return present[np.argsort(self.lengths[present], kind="stable")]

    def _table(self):
        """For each pattern of so many bits, `16 * symbol + length`, and how many bits."""
        order, bits = self._canonical(), int(self.lengths.max())
        lengths = self.lengths[order].astype("int64")
        entries = (16 * order + lengths).astype("uint32")
        return np.repeat(entries, 2 ** (bits - lengths)), bits


def huffman_encode(symbols):
    """Codes integers by how often they occur.

    Args:
        symbols: Integers from 0 to 4095, at least one.

    Returns:
        `(code, packed)`: the `HuffmanCode` and the bytes that it decodes.

    Raises:
        ValueError: if `symbols` are not of these.

    Reference:
        Han, Mao, Dally, "Deep Compression", 2016, section 4.

    Example:

    >>> code, packed = huffman_encode([3, 3, 0, 3, 1, 3])
    >>> huffman_decode(code, packed, 6).tolist()
    [3, 3, 0, 3, 1, 3]
    """
    symbols = np.asarray(symbols)
    whole = symbols.size and np.issubdtype(symbols.dtype, np.integer)
    if not whole or symbols.min() < 0 or symbols.max() >= MAX_SYMBOLS:
        raise ValueError(
            f"huffman_encode: `symbols` must be integers from 0 to {MAX_SYMBOLS - 1}, at least "
            f"one; got dtype {symbols.dtype}, shape {symbols.shape}"
            + (f", {symbols.min()} to {symbols.max()}." if symbols.size else ".")
        )
    code = HuffmanCode.of_counts(np.bincount(symbols.ravel()))
    return code, code.encode(symbols)


def huffman_decode(code, packed, count):
    """Symbols of `huffman_encode`.

    Args:
        code: A `HuffmanCode`.
        packed: Bytes.
        count: Number of symbols.

    Returns:
        uint16 array `(count,)`.

    Raises:
        ValueError: if the bytes are not those of so many symbols.
    """
    return code.decode(packed, validation.integer("count", count, 0, 2**40, "huffman_decode"))


def _package_merge(counts, limit):
    """Lengths of at most `limit` bits that cost least: Larmore and Hirschberg's package-merge.

    Reference:
        Larmore, Hirschberg, "A Fast Algorithm for Optimal Length-Limited Huffman Codes", 1990.
    """
    n = len(counts)
    if n == 1:
        return np.ones(1, "uint8")
    order = np.argsort(counts, kind="stable")
    leaves = counts[order].astype("float64")
    packages, levels = np.empty(0), []
    for _ in range(limit):
        merged = np.concatenate([leaves, packages])
        rank = np.argsort(merged, kind="stable")
        levels.append(rank >= n)
        merged = merged[rank]
        packages = merged[: len(merged) // 2 * 2].reshape(-1, 2).sum(axis=1)
    # Of the last level 2n - 2 items are taken, of those before, the two of each package taken; each
    # leaf taken is a bit more for its symbol, and the cheapest leaves come first.
    lengths, take = np.zeros(n, "uint8"), 2 * n - 2
    for is_package in reversed(levels):
        taken = int(np.count_nonzero(is_package[:take]))
        lengths[: take - taken] += 1
        take = 2 * taken
    result = np.empty(n, "uint8")
    result[order] = lengths
    return result


def _lanes(count):
    """`(lanes, symbols of each)`: the last lane may have fewer."""
    wanted = min(_MAX_LANES, -(-count // _LANE_SYMBOLS))
    per_lane = -(-count // wanted)
    return -(-count // per_lane), per_lane


def _add_bits(words, starts, lengths, codes):
    """Puts codes at bit positions (ascending, without gaps) into 32-bit words, first bit on top."""
    numbers = starts >> 5
    wide = codes << (64 - (starts & 31) - lengths).astype("uint64")
    # A code is shorter than a word, so some code begins in each; bits that do not overlap add up.
    first = np.flatnonzero(np.diff(numbers, prepend=-1))
    into = numbers[first]
    words[into] += np.add.reduceat(wide >> np.uint64(32), first)
    words[into + 1] += np.add.reduceat(wide & np.uint64(0xFFFFFFFF), first)


def _pack_lane_bits(lane_bits):
    """Least length (8 bytes), bits of an excess (1 byte), then the excesses over the least."""
    least = int(lane_bits.min())
    excess = (lane_bits - least).astype(">u4")
    width = int(excess.max()).bit_length()
    bits = np.unpackbits(excess.view("uint8").reshape(-1, 4), axis=1)[:, 32 - width :]
    return least.to_bytes(8, "little") + bytes([width]) + np.packbits(bits).tobytes()


def _unpack_lane_bits(packed, lanes):
    """`(bits of each lane, the bytes that follow)`."""
    width = packed[8] if len(packed) > 8 else 33
    end = 9 + -(-lanes * width // 8)
    if width > 32 or end > len(packed):
        raise ValueError(f"Huffman stream: {len(packed)} bytes are too few for {lanes} lanes.")
    least = int.from_bytes(packed[:8], "little")
    # Bits of all lanes cannot be more than those that are there.
    if least * lanes > 8 * len(packed):
        raise ValueError("Huffman stream: its lanes are longer than the stream.")
    bits = np.unpackbits(np.frombuffer(packed, "uint8", end - 9, 9), count=lanes * width)
    excess = np.zeros((lanes, 32), "uint8")
    excess[:, 32 - width :] = bits.reshape(lanes, width)
    return least + np.packbits(excess, axis=1).view(">u4")[:, 0].astype("int64"), packed[end:]


def _windows(stream):
    """The 32 bits from each byte on, the first on top, as uint32."""
    padded = np.frombuffer(bytes(stream) + b"\0" * 8, "uint8").astype("uint32")
    size = len(padded) - 3
    windows = padded[:size] << 24
    for i in (1, 2, 3):
        windows |= padded[i : size + i] << (24 - 8 * i)
    return windows


def _advance(positions, windows, table, bits, symbols):
    """Decodes a symbol of each lane for each row of `symbols`; `positions` move on."""
    byte, entry = np.empty_like(positions), np.empty(positions.shape, "uint32")
    window = np.empty(positions.shape, "uint32")
    for row in symbols:
        np.right_shift(positions, 3, out=byte)
        # "clip": a hostile stream may run over its end, which is found out afterwards.
        np.take(windows, byte, out=window, mode="clip")
        np.bitwise_and(positions, 7, out=byte)
        np.left_shift(window, byte, out=window, casting="unsafe")
        np.right_shift(window, 32 - bits, out=window)
        np.take(table, window, out=entry, mode="clip")
        np.right_shift(entry, 4, out=row, casting="unsafe")
        np.bitwise_and(entry, 15, out=entry)
        np.add(positions, entry, out=positions, casting="unsafe")
