"""Layout of `.kcz` files, version 1: see docs/kcz.md, which says the same in words."""

import struct
import zlib

import ml_dtypes
import numpy as np

MAGIC = b"\x89KCZ\r\n\x1a\n"
VERSION = 1
#: Magic, version, zero, weights, stored bytes and bytes of the configuration, bytes of the file.
HEADER = struct.Struct("<8sHHIIIQ")
CRC = struct.Struct("<I")
#: Bytes of a record's body.
LENGTH = struct.Struct("<Q")

RAW, DEFLATED, CODED, SPARSE = range(4)
KINDS = ("raw", "deflated", "coded", "sparse")
TABLE, GRID = range(2)

#: Dtypes by their number in a record; only ever appended to.
DTYPES = (
    "float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "uint16", "int32",
    "uint32", "int64", "uint64", "bool", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip

#: zlib makes no more than this many bytes of one.
MAX_INFLATION = 1032
MAX_RANK = 16


def numpy_dtype(name):
    """The numpy dtype of a Keras dtype's name, bfloat16 and float8 included."""
    return np.dtype(getattr(ml_dtypes, name, name))


class ArchiveError(ValueError):
    """A file is no archive, or is damaged, cut off, of a later version or built to do harm."""


class Cursor:
    """Reads bytes one after another and never past their end.

    Args:
        content: Bytes.
        what: What they are, for errors.
    """

    def __init__(self, content, what):
        self._content = memoryview(content)
        self._at = 0
        self.what = what

    @property
    def left(self):
        """Number of bytes that are not read yet."""
        return len(self._content) - self._at

    def peek(self, size):
        """The next `size` bytes, as a view, which stay the next ones."""
        if size > self.left:
            raise ArchiveError(
                f"{self.what}: cut off or damaged: {size} bytes are needed, and {self.left} left."
            )
        return self._content[self._at : self._at + size]

    def take(self, size):
        """The next `size` bytes, as a view."""
        taken = self.peek(size)
        self._at += size
        return taken

    def unpack(self, form):
        """Numbers of a `struct` format, little-endian; one alone as it is."""
        form = struct.Struct(f"<{form}")
        numbers = form.unpack(self.take(form.size))
        return numbers[0] if len(numbers) == 1 else numbers

    def finish(self):
        """Raises `ArchiveError` if something is left."""
        if self.left:
            raise ArchiveError(f"{self.what}: {self.left} bytes too many; the file is damaged.")


def sealed(content):
    """Bytes with their checksum after them."""
    return content + CRC.pack(zlib.crc32(content))


def unsealed(cursor, size):
    """`size` bytes of a cursor, after their checksum was compared."""
    content = cursor.take(size)
    if zlib.crc32(content) != cursor.unpack("I"):
        raise ArchiveError(f"{cursor.what}: the checksum does not fit; the file is damaged.")
    return content


def inflated(stored, size, what):
    """Decompresses to exactly `size` bytes, and never more."""
    if size > MAX_INFLATION * (len(stored) + 1):
        raise ArchiveError(f"{what}: {len(stored)} bytes cannot become {size}; the file is wrong.")
    try:
        machine = zlib.decompressobj()
        content = machine.decompress(stored, size + 1)
    except zlib.error as error:
        raise ArchiveError(f"{what}: not to be decompressed ({error}).") from error
    if len(content) != size or not machine.eof or machine.unused_data:
        raise ArchiveError(f"{what}: it does not decompress to the {size} bytes that it states.")
    return content
