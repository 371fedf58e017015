"""What each layer of a model became in its .tflite: form, bytes, operation, share of latency."""

import collections
import dataclasses
import math

from keras_compress.export.flatbuffer import Flatbuffer
from keras_compress.export.sparsity import index_bytes
from keras_compress.export.structure import layer_paths, path_in
from keras_compress.export.timing import time_parts, unpacking_operators
from keras_compress.layers import CompressedConv2D, CompressedDense
from keras_compress.tables import Table

#: Operations around a variable, which say nothing of what is computed.
_SETUP = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")

OTHER = "other layers"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a .tflite comes from: what its tensors' names and its outputs stand for.

    Attributes:
        dense_bytes: Dict from the path of each layer (see `structure.layer_paths`) to the bytes of
            its weights in float32; for a compressed layer, of the stock layer that it replaces.
        givers: Dict from the name of each output to the path of the layer that gives it.
    """

    dense_bytes: dict
    givers: dict

    @classmethod
    def of(cls, model, givers):
        """The origin of an export of `model`."""
        return cls({path: _dense_bytes(layer) for path, layer in layer_paths(model)}, givers)


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer of a .tflite.

    Attributes:
        layer: Path of the Keras layer, or what the rest is called.
        form: How its weights are stored.
        dense_bytes: Bytes of its weights in float32, uncompressed.
        nbytes: Bytes of its constants in the file; one that several layers read counts for the
            first.
        operation: What runs it.
        share: Its part of the time of all layers, or `None` if that was not measured.
    """

    layer: str
    form: str
    dense_bytes: int
    nbytes: int
    operation: str
    share: float | None


def layer_rows(lite, runs=20, threads=1):
    """Lists the layers of a `LiteModel`.

    Args:
        lite: The model, as `to_tflite` gave it.
        runs: Timed rounds for the share of latency; 0 does not measure it.
        threads: Threads of the interpreters.

    Returns:
        List of `LayerRow`: each layer that has weights, then the other layers together. Their
        constants and the description of the graph make up the file.
    """
    if lite.origin is None:
        raise ValueError(
            "A table by layer needs to know the Keras layers; this model was read from a file. Use "
            "what to_tflite() returned, or the card that kc.export.bundle() wrote."
        )
    owned = _Ownership(Flatbuffer(lite.content), lite.origin)
    shares = {}
    if runs:
        times = time_parts(lite, owned.parts, runs, threads)
        total = sum(times.values())
        shares = {path: time / total for path, time in times.items()}
    stored = {}
    for layer in lite.layers:
        stored.setdefault(layer.layer, []).append(layer)
    rows = [
        LayerRow(
            layer=path,
            form=_each(stored[path], "form") if path in stored else owned.form(path),
            dense_bytes=dense_bytes,
            nbytes=owned.nbytes(path),
            operation=_each(stored[path], "kernel") if path in stored else owned.operation(path),
            share=shares.get(path, 0.0) if runs else None,
        )
        for path, dense_bytes in lite.origin.dense_bytes.items()
        if dense_bytes
    ]
    rest = [path for path, dense_bytes in lite.origin.dense_bytes.items() if not dense_bytes]
    rest.append(None)
    names = [name for path in rest for name in owned.operations[path]]
    nbytes = sum(map(owned.nbytes, rest))
    if names or nbytes:
        rows.append(
            LayerRow(
                layer=OTHER,
                form="",
                dense_bytes=0,
                nbytes=nbytes,
                operation=_listed(names),
                share=sum(shares.get(path, 0.0) for path in rest) if runs else None,
            )
        )
    return rows


def _each(kernels, attribute):
    """What the stored kernels of one layer say: mostly there is one, or they say the same."""
    return " + ".join(dict.fromkeys(getattr(kernel, attribute) for kernel in kernels))


def layer_of(lite, number):
    """Path of the layer that an operation of the main graph belongs to, or `None`.

    Args:
        lite: The model, as `to_tflite` gave it.
        number: The operation's number in the file.
    """
    parts = layer_operations(Flatbuffer(lite.content), lite.origin)
    return next((path for path, numbers in parts.items() if number in numbers), None)


def layer_operations(flatbuffer, origin):
    """Dict from the path of each layer, or `None`, to numbers of its operations in the main graph.

    Args:
        flatbuffer: A `Flatbuffer`.
        origin: Its `Origin`.
    """
    return _Ownership(flatbuffer, origin).parts


def layer_table(lite, rows):
    """`LayerRow`s as a `Table`, with the graph and the total below them."""
    constants = sum(row.nbytes for row in rows)
    dense = sum(row.dense_bytes for row in rows)
    cells = [
        [
            row.layer,
            row.form,
            f"{row.dense_bytes:,}",
            f"{row.nbytes:,}",
            _ratio(row.dense_bytes, row.nbytes),
            row.operation,
            "-" if row.share is None else f"{row.share:.1%}",
        ]
        for row in rows
    ]
    cells.append(["graph", "", "0", f"{lite.nbytes - constants:,}", "", "", ""])
    cells.append(
        ["total", "", f"{dense:,}", f"{lite.nbytes:,}", _ratio(dense, lite.nbytes), "", ""]
    )
    header = ["layer", "stored as", "float32 bytes", "bytes", "smaller", "runs as", "time"]
    return Table(header, cells, align="<<>>><>")


class _Ownership:
    """Which layer each operation and constant of a model belongs to, from their names.

    An operation belongs to the layer that its weights are named after, else to the one that its
    outputs are: the converter may name an output after the next layer, whose reshape it swallowed.
    """

    def __init__(self, flatbuffer, origin):
        self._flatbuffer = flatbuffer
        # Of layers that were fused, the one with the most weights has the operation.
        self._paths = sorted(origin.dense_bytes, key=lambda path: -origin.dense_bytes[path])
        self._givers = self._givers_by_tensor(origin)
        #: Dict from a path, or `None`, to names of its operations in the order of the file.
        self.operations = collections.defaultdict(list)
        #: Dict from a path, or `None`, to indices of its operations in the main graph.
        self.parts = collections.defaultdict(list)
        self._weights = collections.defaultdict(list)
        self._claimed = set()
        for number, graph in enumerate(flatbuffer.subgraphs):
            self._read(graph, main=number == 0)

    def nbytes(self, path):
        """Bytes of a layer's constants."""
        return sum(size for size, _, _ in self._weights[path])

    def form(self, path):
        """Type of a layer's largest constant, in words."""
        if not self.operations[path]:
            return "folded"
        if not self._weights[path]:
            return "shared"
        return self._largest(path)[1]

    def operation(self, path):
        """The operation that reads a layer's largest constant."""
        if not self._weights[path]:
            return _listed(self.operations[path])
        _, kind, name = self._largest(path)
        times = self.operations[path].count(name)
        return f"{f'{times} ' if times > 1 else ''}{name} {kind}"

    def _largest(self, path):
        return max(self._weights[path], key=lambda weight: weight[0])

    def _read(self, graph, main):
        unpacked = unpacking_operators(self._flatbuffer, graph)
        readers = {}
        for index, operator in enumerate(graph.operators):
            name = self._flatbuffer.name_of(operator)
            if name == "CALL_ONCE" or any(operator is one for one in unpacked.values()):
                continue
            path = self._owner(graph, operator, unpacked, main)
            readers |= {int(i): path for i in operator.inputs if int(i) in unpacked}
            if main:
                self.parts[path].append(index)
            if name not in _SETUP:
                self.operations[path].append(name)
            for tensor in self._constants(graph, operator, unpacked):
                if tensor.buffer not in self._claimed:
                    self._claimed.add(tensor.buffer)
                    size = self._size(tensor)
                    if tensor.sparsity is not None:
                        size += index_bytes(tensor.sparsity)
                    kind = self._flatbuffer.type_name(tensor).lower()
                    self._weights[path].append((size, kind, name))

    def _givers_by_tensor(self, origin):
        signatures = self._flatbuffer.model.signatureDefs or []
        return {
            entry.tensorIndex: origin.givers.get(_text(entry.name))
            for signature in signatures
            for entry in signature.outputs
        }

    def _owner(self, graph, operator, unpacked, main):
        # Integers of 32 and 64 bits are shapes and axes, which layers share.
        weights = [
            tensor
            for tensor in self._constants(graph, operator, unpacked)
            if self._flatbuffer.type_name(tensor) not in ("INT32", "INT64")
        ]
        # ASSIGN_VARIABLE gives nothing; what it takes is its layer's.
        ends = operator.outputs if len(operator.outputs) else operator.inputs
        for tensor in (*weights, *(graph.tensor(i) for i in ends)):
            path = path_in(_text(tensor.name), self._paths)
            if path is not None:
                return path
        # The converter names the outputs of the model after the signature.
        givers = (self._givers.get(int(i)) for i in operator.outputs if main)
        return next((path for path in givers if path), None)

    def _constants(self, graph, operator, unpacked):
        packed = (
            int(unpacked[i].inputs[0]) if i in unpacked else i
            for i in map(int, operator.inputs)
            if i >= 0
        )
        tensors = (graph.tensor(i) for i in packed)
        return [tensor for tensor in tensors if self._size(tensor)]

    def _size(self, tensor):
        data = self._flatbuffer.model.buffers[tensor.buffer].data
        return 0 if data is None else len(data)


def _dense_bytes(layer):
    """Bytes of a layer's weights in float32; of a compressed one, of what it replaces."""
    if isinstance(layer, CompressedDense):
        kernel = layer.input_channels * layer.units
    elif isinstance(layer, CompressedConv2D):
        channels = layer.input_channels // layer.groups
        kernel = math.prod(layer.kernel_size) * channels * layer.filters
    else:
        return 4 * sum(math.prod(weight.shape) for weight in layer.weights)
    return 4 * (kernel + (0 if layer.bias is None else layer.bias.shape[0]))


def _listed(names):
    """Names in the order of their first appearance, with how often they come."""
    counts = collections.Counter(names)
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())


def _ratio(before, after):
    return f"{before / after:,.1f}x" if before and after else "-"


def _text(name):
    return name.decode() if isinstance(name, bytes) else name or ""
