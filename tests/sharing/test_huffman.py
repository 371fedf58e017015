"""Canonical Huffman codes: Deep Compression's last stage."""

import heapq

import numpy as np
import pytest

from keras_compress.sharing import HuffmanCode, huffman_decode, huffman_encode

RNG = np.random.default_rng(0)


def geometric(count, k, p):
    return np.minimum(RNG.geometric(p, size=count) - 1, k - 1)


def textbook_cost(counts):
    """Bits of Huffman's own algorithm: the sum of all merged weights."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


def plain_decode(code, bits, count):
    """Bit by bit, from the definition of a canonical code."""
    order = sorted((n, s) for s, n in enumerate(code.lengths.tolist()) if n)
    words, number, before = {}, 0, order[0][0]
    for length, symbol in order:
        number <<= length - before
        words[length, number] = symbol
        number, before = number + 1, length
    symbols, value, length = [], 0, 0
    for bit in bits:
        value, length = 2 * value + int(bit), length + 1
        if (length, value) in words:
            symbols.append(words[length, value])
            value = length = 0
    return symbols[:count]


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 5000, 40_001])
@pytest.mark.parametrize(("k", "p"), [(1, 0.5), (2, 0.5), (32, 0.3), (256, 0.03), (4096, 0.002)])
def test_han_decode_of_encode_is_the_same(count, k, p):
    symbols = geometric(count, k, p)
    code, packed = huffman_encode(symbols)
    np.testing.assert_array_equal(huffman_decode(code, packed, count), symbols)


def test_more_than_one_chunk_of_symbols_is_written_without_a_seam(monkeypatch):
    from keras_compress.sharing import huffman

    symbols = geometric(20_000, 64, 0.1)
    _, whole = huffman_encode(symbols)
    monkeypatch.setattr(huffman, "_CHUNK", 1000)
    assert huffman_encode(symbols)[1] == whole


def test_more_symbols_than_lanes_have_places(monkeypatch):
    from keras_compress.sharing import huffman

    monkeypatch.setattr(huffman, "_MAX_LANES", 8)
    symbols = geometric(10_001, 32, 0.2)
    code, packed = huffman_encode(symbols)
    np.testing.assert_array_equal(code.decode(packed, 10_001), symbols)


@pytest.mark.parametrize(("k", "p"), [(2, 0.9), (2, 0.5), (32, 0.3), (256, 0.03), (3, 0.99)])
def test_han_mean_length_is_within_a_bit_of_the_entropy(k, p):
    counts = np.bincount(geometric(20_000, k, p))
    shares = counts[counts > 0] / counts.sum()
    entropy = -np.sum(shares * np.log2(shares))
    mean = HuffmanCode.of_counts(counts).mean_length(counts)
    assert entropy - 1e-9 <= mean < entropy + 1


def test_one_symbol_takes_no_bits():
    code, packed = huffman_encode([7] * 1000)
    assert packed == b"" and code.mean_length(np.bincount([7])) == 0
    assert huffman_decode(code, packed, 1000).tolist() == [7] * 1000


@pytest.mark.parametrize("size", [2, 3, 17, 200])
def test_cost_is_that_of_huffmans_algorithm(size):
    counts = RNG.integers(0, 1000, size)
    counts[:2] = 5
    code = HuffmanCode.of_counts(counts)
    assert np.dot(counts, code.lengths.astype(int)) == textbook_cost(counts)


def test_lengths_stop_at_15_bits_where_huffmans_would_go_on():
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(sum(fibonacci[-2:]))
    code = HuffmanCode.of_counts(fibonacci)
    assert code.lengths.max() == 15
    assert np.sum(0.5 ** code.lengths.astype(float)) == 1
    # A fortieth above the unlimited code, whose longest word has 29 bits.
    assert np.dot(fibonacci, code.lengths.astype(int)) < 1.025 * textbook_cost(fibonacci)


def test_bits_are_those_of_the_canonical_code():
    symbols = geometric(200, 12, 0.3)
    code, packed = huffman_encode(symbols)
    # One lane: 8 bytes of its length, one that says that no more are stored.
    assert int.from_bytes(packed[:8], "little") == code.lengths[symbols].sum() and packed[8] == 0
    bits = np.unpackbits(np.frombuffer(packed[9:], "uint8"))
    assert plain_decode(code, bits, 200) == symbols.tolist()


def test_damaged_streams_are_errors_or_other_symbols():
    symbols = geometric(3000, 64, 0.1)
    code, packed = huffman_encode(symbols)
    for _ in range(300):
        broken = bytearray(packed)
        broken[RNG.integers(len(broken))] ^= 1 << RNG.integers(8)
        broken = bytes(broken[: len(broken) - int(RNG.integers(2)) * int(RNG.integers(9))])
        try:
            found = code.decode(broken, 3000)
        except ValueError:
            continue
        assert found.shape == (3000,) and found.max() < 64
    for content in (b"", packed[:8], packed + b"\0", b"\xff" * len(packed)):
        with pytest.raises(ValueError, match="Huffman stream"):
            code.decode(content, 3000)


@pytest.mark.parametrize("lengths", [[], [0, 0], [1, 1, 1], [2, 2, 2], [16, 1], [2], [[1, 1]]])
def test_lengths_of_no_code_are_refused(lengths):
    with pytest.raises(ValueError, match="HuffmanCode: `lengths` must be"):
        HuffmanCode(np.array(lengths, int))


@pytest.mark.parametrize("symbols", [[], [-1], [4096], [0.5]])
def test_other_symbols_are_refused(symbols):
    with pytest.raises(ValueError, match="`symbols` must be integers from 0 to 4095"):
        huffman_encode(symbols)
