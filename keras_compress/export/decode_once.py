"""Weights that are decoded once: CALL_ONCE fills an int8 variable at the first invocation.

Steady state: READ_VARIABLE copies the variable and FULLY_CONNECTED runs its hybrid int8 kernel. The
copy is a quarter of the float one, and the int8 kernel several times faster than float.
"""

import functools
import math

import numpy as np

from keras_compress.export.flatbuffer import Subgraph
from keras_compress.sharing.hashing import ROUNDS, axis_hashes


class Decoder:
    """Emits operations into the model's initializer and binds the result to a variable.

    Args:
        site: The `Site` whose weights are decoded.
    """

    def __init__(self, site):
        self.site = site
        self.schema = site.schema
        self.graph: Subgraph = site.flatbuffer.initializer()

    def constant(self, label, array, scale=None):
        """Adds a constant; its bytes count as the site's."""
        self.site.nbytes += array.nbytes
        return self.graph.add_constant(f"{self.site.name}/{label}", array, scale)

    def apply(self, name, inputs, shape, type_name, options=None, scale=None, version=1):
        """Emits one operation; returns its output tensor."""
        output = self.graph.add_tensor(
            f"{self.site.name}/{name.lower()}", shape, type_name, scale=scale
        )
        self.graph.emit(name, inputs, [output], options, version)
        return output

    def cast(self, tensor, shape, type_name):
        """CAST to another type."""
        options = self.schema.CastOptionsT()
        options.inDataType = self.graph.tensor(tensor).type
        options.outDataType = self.site.flatbuffer.type_code(type_name)
        return self.apply("CAST", [tensor], shape, type_name, options)

    def gather(self, table, indices, shape, scale):
        """GATHER of int8 entries along axis 0."""
        options = self.schema.GatherOptionsT()
        options.axis = 0
        return self.apply("GATHER", [table, indices], shape, "INT8", options, scale, version=2)

    def reshape(self, tensor, shape, scale=None, type_name="INT8"):
        """RESHAPE."""
        options = self.schema.ReshapeOptionsT()
        options.newShape = list(shape)
        target = self.graph.add_constant(f"{self.site.name}/shape", np.array(shape, np.int32))
        return self.apply("RESHAPE", [tensor, target], shape, type_name, options, scale)

    def cut(self, tensor, size, type_name, scale=None):
        """The first entries of a vector."""
        ends = [
            self.graph.add_constant(f"{self.site.name}/{label}", np.array([value], np.int32))
            for label, value in (("begin", 0), ("size", size))
        ]
        options = self.schema.SliceOptionsT()
        return self.apply("SLICE", [tensor, *ends], [size], type_name, options, scale, 2)

    @property
    def done(self):
        """Whether another call of the same layer has its weights decoded."""
        return self.site.variable_name in self.site.flatbuffer.variables

    def assign(self, tensor):
        """Assigns the result to the variable."""
        self.site.flatbuffer.variables.add(self.site.variable_name)
        self.graph.emit(
            "ASSIGN_VARIABLE",
            [self._handle(self.graph, self.graph.emit), tensor],
            [],
            self.schema.AssignVariableOptionsT(),
        )

    def read(self, shape, scale):
        """The tensor that reads the variable at the site."""
        graph = self.site.graph
        weights = graph.add_tensor(f"{self.site.name}/kernel", shape, "INT8", scale=scale)
        handle = self._handle(graph, self.site.emit)
        self.site.emit("READ_VARIABLE", [handle], [weights], self.schema.ReadVariableOptionsT())
        return weights

    def _handle(self, graph, emit):
        options = self.schema.VarHandleOptionsT()
        options.container, options.sharedName = "keras_compress", self.site.variable_name
        handle = graph.add_tensor(f"{self.site.name}/handle", [], "RESOURCE")
        emit("VAR_HANDLE", [], [handle], options)
        return handle


def table_weights(site, symbols, levels, scale):
    """Symbols of a small alphabet, several to a byte, expanded by one GATHER from a byte table.

    Args:
        site: The `Site`.
        symbols: Integer array `(outputs, inputs)`, indices of `levels`.
        levels: int8 vector of at most 16 entries.
        scale: Scalar, or one for each output.

    Returns:
        `(tensor, bits)`: the int8 weights at the site, and the bits of one symbol in the file.
    """
    each = symbols_per_byte(len(levels))
    decoder = Decoder(site)
    if not decoder.done:
        decoder.assign(_decode_table(decoder, symbols, levels, each))
    return decoder.read(symbols.shape, scale), 8 / each


def _decode_table(decoder, symbols, levels, each):
    radix = len(levels) if each in (8, 5) else 2 ** (8 // each)
    padded = np.pad(symbols.reshape(-1), (0, -symbols.size % each)).reshape(-1, each)
    powers = radix ** np.arange(each)
    packed = (padded * powers).sum(1).astype(np.uint8)
    digits = np.arange(radix**each)[:, None] // powers % radix
    table = np.asarray(levels, np.int8)[np.minimum(digits, len(levels) - 1)]
    codes = decoder.cast(decoder.constant("codes", packed), packed.shape, "INT32")
    entries = decoder.gather(
        decoder.constant("table", table, 1.0), codes, [len(packed), each], scale=1.0
    )
    if symbols.size != padded.size:
        entries = decoder.reshape(entries, [padded.size], 1.0)
        entries = decoder.cut(entries, symbols.size, "INT8", 1.0)
    return decoder.reshape(entries, symbols.shape, 1.0)


def symbols_per_byte(alphabet):
    """How many symbols of an alphabet fit in a byte and are cut apart by one table."""
    return {2: 8, 3: 5, 4: 4}.get(max(alphabet, 2), 2)


def vector_weights(site, codes, centres, scale):
    """Sums of vectors that codes name, one for each stage.

    Args:
        site: The `Site`.
        codes: Integer array `(stages, outputs, ..., segments)`.
        centres: int8 array `(stages, books, k, length)`, `books` being 1 or the segments.
        scale: Scalar.

    Returns:
        The int8 weights `(outputs, inputs)` at the site.
    """
    outputs, length = codes.shape[1], centres.shape[3]
    rows = (outputs, codes[0].size // outputs * length)
    decoder = Decoder(site)
    if not decoder.done:
        stages = [_stage(decoder, *stage) for stage in zip(codes, centres, strict=True)]
        total = stages[0]
        if len(stages) > 1:
            shape = (codes[0].size, length)
            wide = [decoder.cast(stage, shape, "INT32") for stage in stages]
            total = wide[0]
            for stage in wide[1:]:
                total = _binary(decoder, "ADD", total, stage, shape, site.schema.AddOptionsT())
            total = decoder.cast(total, shape, "INT8")
        decoder.assign(decoder.reshape(total, rows, 1.0))
    return decoder.read(rows, scale)


def _stage(decoder, codes, centres):
    """The vectors of one stage, int8 `(codes, length)`, segment by segment of each output."""
    books, k, length = centres.shape
    index = _unpacked(decoder, codes.ravel(), (k - 1).bit_length())
    if books > 1:
        offsets = decoder.constant("offsets", k * np.arange(books, dtype=np.int32))
        shape = [codes.size // books, books]
        index = decoder.reshape(index, shape, type_name="INT32")
        index = _binary(decoder, "ADD", index, offsets, shape, decoder.schema.AddOptionsT())
        index = decoder.reshape(index, [codes.size], type_name="INT32")
    table = decoder.constant("centres", centres.reshape(-1, length), 1.0)
    return decoder.gather(table, index, [codes.size, length], 1.0)


def _unpacked(decoder, codes, bits):
    """int32 codes from the fewest bytes: bits in groups of 8, 4, 2 and 1, each group packed."""
    total, shift = None, 0
    for width in (8, 8, 4, 2, 1):
        if shift + width > max(bits, 1):
            continue
        part = _packed_part(decoder, codes >> shift & (2**width - 1), width)
        if shift:
            factor = _scalar(decoder, 2**shift)
            part = _binary(decoder, "MUL", part, factor, codes.shape, decoder.schema.MulOptionsT())
        if total is None:
            total = part
        else:
            options = decoder.schema.AddOptionsT()
            total = _binary(decoder, "ADD", total, part, codes.shape, options)
        shift += width
    return total


def _packed_part(decoder, symbols, width):
    """int32 vector of symbols of 1, 2, 4 or 8 bits."""
    each = 8 // width
    padded = np.pad(symbols, (0, -len(symbols) % each)).reshape(-1, each)
    places = width * np.arange(each)
    packed = (padded << places).sum(1).astype(np.uint8)
    found = decoder.cast(decoder.constant("codes", packed), packed.shape, "INT32")
    if each == 1:
        return found
    digits = (np.arange(256)[:, None] >> places & (2**width - 1)).astype(np.int8)
    table = decoder.constant("digits", digits, 1.0)
    entries = decoder.gather(table, found, [len(packed), each], 1.0)
    entries = decoder.reshape(entries, [padded.size], 1.0)
    if padded.size != len(symbols):
        entries = decoder.cut(entries, len(symbols), "INT8", 1.0)
    return decoder.cast(entries, [len(symbols)], "INT32")


def hashed_weights(site, ints, scale, seed, shape):
    """The kernel of a hashed layer, `sharing.hashing` in LiteRT's operations.

    Args:
        site: The `Site`.
        ints: int8 vector, one entry a bucket.
        scale: Scalar.
        seed: Seed of the hash.
        shape: Shape of the kernel, outputs last.

    Returns:
        The int8 weights `(outputs, inputs)` at the site.
    """
    decoder = Decoder(site)
    rows = (shape[-1], math.prod(shape[:-1]))
    if not decoder.done:
        decoder.assign(_decode_hash(decoder, ints, seed, shape))
    return decoder.read(rows, scale)


def _decode_hash(decoder, ints, seed, shape):
    site = decoder.site
    rows = (shape[-1], math.prod(shape[:-1]))
    *inner, by_output = axis_hashes(shape, seed)
    by_input = functools.reduce(np.add.outer, inner).ravel().view(np.int32)
    total = _binary(
        decoder,
        "ADD",
        decoder.constant("by_output", by_output.view(np.int32)[:, None]),
        decoder.constant("by_input", by_input[None]),
        rows,
        site.schema.AddOptionsT(),
    )
    for shift, factor in ROUNDS:
        # A shift of uint32 is a logical one.
        bits = decoder.apply("BITCAST", [total], rows, "UINT32", site.schema.BitcastOptionsT())
        amount = decoder.graph.add_constant(f"{site.name}/shift", np.array([shift], np.uint32))
        bits = decoder.apply(
            "RIGHT_SHIFT", [bits, amount], rows, "UINT32", site.schema.RightShiftOptionsT()
        )
        bits = decoder.apply("BITCAST", [bits], rows, "INT32", site.schema.BitcastOptionsT())
        total = _binary(decoder, "BITWISE_XOR", total, bits, rows, site.schema.BitwiseXorOptionsT())
        if factor != 1:
            constant = _scalar(decoder, factor)
            total = _binary(decoder, "MUL", total, constant, rows, site.schema.MulOptionsT())
    index = _binary(
        decoder,
        "FLOOR_MOD",
        total,
        _scalar(decoder, 2 * len(ints)),
        rows,
        site.schema.FloorModOptionsT(),
    )
    table = _signed_table(decoder, ints)
    return decoder.gather(table, index, rows, 1.0)


def _signed_table(decoder, ints):
    """`concatenate([w, -w])` of int8 values: only w is stored."""
    schema, count = decoder.schema, len(ints)
    values = decoder.cast(decoder.constant("values", ints, 1.0), [count], "INT32")
    negative = decoder.apply("NEG", [values], [count], "INT32", schema.NegOptionsT())
    options = schema.ConcatenationOptionsT()
    options.axis = 0
    both = decoder.apply("CONCATENATION", [values, negative], [2 * count], "INT32", options)
    return decoder.cast(both, [2 * count], "INT8")


def _scalar(decoder, value):
    array = np.array([value], np.uint32).view(np.int32)
    return decoder.graph.add_constant(f"{decoder.site.name}/scalar", array)


def _binary(decoder, name, left, right, shape, options):
    return decoder.apply(name, [left, right], shape, "INT32", options)
