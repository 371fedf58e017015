"""Archives as an accident or an attacker would leave them, for tests and benchmarks."""

import json
import struct
import zlib

HEADER_BYTES = 32
_WORDS = {1: "B", 2: "<H", 4: "<I", 8: "<Q"}


def mutation(content, rng):
    """A changed copy of an archive.

    A third is changed anywhere. In a third the change is in a record or the header and all
    checksums are right again, in a third it is in the configuration.

    Args:
        content: Bytes of a file.
        rng: numpy Generator.
    """
    kind = rng.integers(3)
    if kind == 0:
        return _damaged(content, rng)
    header, config, bodies = split(content)
    if kind == 1:
        number = int(rng.integers(len(bodies) + 1))
        if number == len(bodies):
            header = _damaged(header, rng)[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
        else:
            bodies[number] = _damaged(bodies[number], rng)
        return join(header, config, bodies, keep_header=number == len(bodies))
    text = json.dumps(_changed(json.loads(config), rng)).encode()
    if rng.random() < 0.2:
        text = _damaged(text, rng)
    return join(header, text, bodies)


def split(content):
    """`(header, JSON of the configuration, bodies of the records)` of a sound archive."""
    header = content[:HEADER_BYTES]
    _, _, _, count, stored, _, _ = struct.unpack("<8sHHIIIQ", header)
    at = HEADER_BYTES + 4
    config = zlib.decompress(content[at : at + stored])
    at += stored + 4
    bodies = []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", content, at)
        bodies.append(content[at + 8 : at + 8 + length])
        at += 8 + length + 4
    return header, config, bodies


def join(header, config, bodies, keep_header=False):
    """An archive of such parts, every checksum right; `keep_header`: whatever its sizes are."""
    stored = zlib.compress(config)
    parts = [_sealed(stored), *(_sealed(struct.pack("<Q", len(b)) + b) for b in bodies)]
    if not keep_header:
        total = HEADER_BYTES + 4 + sum(map(len, parts))
        numbers = (len(bodies), len(stored), len(config), total)
        header = header[:12] + struct.pack("<IIIQ", *numbers)
    return b"".join([_sealed(header), *parts])


def _sealed(content):
    return content + struct.pack("<I", zlib.crc32(content))


def _damaged(content, rng):
    content = bytearray(content)
    size = max(1, len(content))
    at, run = int(rng.integers(size)), int(rng.integers(1, 64))
    match int(rng.integers(7)):
        case 0:
            del content[at:]
        case 1 if content:
            content[at] ^= 1 << int(rng.integers(8))
        case 2:
            content[at : at + run] = rng.bytes(len(content[at : at + run]))
        case 3:
            del content[at : at + run]
        case 4:
            content[at:at] = rng.bytes(run)
        case 5:
            content[at : at + run] = bytes([0, 255][int(rng.integers(2))] for _ in range(run))
        case _:
            # A size of the extremes, most of which stand near the beginning.
            width = int(rng.choice(list(_WORDS)))
            at = int(rng.integers(min(size, 40)))
            top = 2 ** (8 * width)
            value = int(rng.choice([0, 1, 2**7, 2**15, 2**31, 2**32 - 1, 2**62])) % top
            value = value if rng.random() < 0.5 else top - 1 - value
            content[at : at + width] = struct.pack(_WORDS[width], value)
    return bytes(content)


def _changed(config, rng):
    """A configuration with one entry changed."""
    places = []

    def walk(value):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            places.append((value, key))
            if isinstance(each, (dict, list)):
                walk(each)

    walk(config)
    owner, key = places[int(rng.integers(len(places)))]
    values = [
        None, -1, 0, 10**6, 10**9, 2**31, 10**30, 1e300, "", "relu", "float16", [], {}, [[[]]],
        {"class_name": "__lambda__", "config": {"value": "4wAAAAAAAAAAAAAAAAAAAABzAAAAAA=="}},
        {"module": "os", "class_name": "system", "config": {}, "registered_name": None},
        {"module": "builtins", "class_name": "function", "config": "eval"},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/"}},
        {"module": "keras.utils", "class_name": "get_file", "config": {}},
    ]  # fmt: skip
    other, other_key = places[int(rng.integers(len(places)))]
    match int(rng.integers(4)):
        case 0:
            del owner[key]
        case 1:
            owner[key] = json.loads(json.dumps(other[other_key]))
        case _:
            owner[key] = values[int(rng.integers(len(values)))]
    return config
