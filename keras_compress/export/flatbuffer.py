"""A .tflite as an object graph that can be edited: the only file that knows the schema."""

import hashlib

import flatbuffers
import numpy as np


class Flatbuffer:
    """A .tflite model opened for editing.

    Args:
        content: Bytes of a .tflite.
    """

    def __init__(self, content):
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        self.schema = schema
        self._utils = flatbuffer_utils
        self.model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        self._initializer = None
        #: Names of the variables that the initializer fills.
        self.variables = set()

    @property
    def subgraphs(self):
        """All subgraphs; the first one is the main one."""
        return [Subgraph(self, graph) for graph in self.model.subgraphs]

    @property
    def main(self):
        """The subgraph that runs when the model is invoked."""
        return self.subgraphs[0]

    def to_bytes(self):
        """Serialises the model without tensors and buffers that nothing uses."""
        for graph in self.subgraphs:
            graph.drop_unused_tensors()
        self._drop_unused_operator_codes()
        self._drop_unused_buffers()
        # A builder that has to grow holds its content twice.
        size = sum(0 if b.data is None else len(b.data) for b in self.model.buffers)
        builder = flatbuffers.Builder(size + 2**20)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(memoryview(builder.Bytes)[builder.Head() :])

    def initializer(self):
        """The subgraph that runs once, before the first invocation: added when first asked for."""
        if self._initializer is None:
            graph = self.schema.SubGraphT(
                tensors=[], inputs=[], outputs=[], operators=[], name=b"keras_compress_init"
            )
            self.model.subgraphs.append(graph)
            self._initializer = Subgraph(self, graph)
            options = self.schema.CallOnceOptionsT()
            options.initSubgraphIndex = len(self.model.subgraphs) - 1
            call = self.main.make_operator("CALL_ONCE", [], [], options)
            self.main.graph.operators = [call, *self.main.operators]
        return self._initializer

    def data(self, tensor):
        """Constant of a tensor as bytes, or `None`."""
        buffer = self.model.buffers[tensor.buffer]
        if tensor.buffer == 0 or buffer.data is None or len(buffer.data) == 0:
            return None
        return bytes(np.asarray(buffer.data, np.uint8))

    def add_buffer(self, content):
        """Adds constant bytes; returns the index of the buffer."""
        data = np.frombuffer(content, np.uint8)
        self.model.buffers.append(self.schema.BufferT(data=data))
        return len(self.model.buffers) - 1

    def type_of(self, dtype):
        """Name in the schema of a numpy dtype."""
        return np.dtype(dtype).name.upper()

    def type_code(self, name):
        """Code of a tensor type by its name in the schema, e.g. `"INT4"`."""
        return getattr(self.schema.TensorType, name)

    def type_name(self, tensor):
        """Name of a tensor's type in the schema."""
        types = vars(self.schema.TensorType).items()
        return next(name for name, code in types if code == tensor.type)

    def operator_code(self, name, version=1):
        """Index of an operator code, added if need be."""
        builtin = getattr(self.schema.BuiltinOperator, name)
        for i, code in enumerate(self.model.operatorCodes):
            if code.builtinCode == builtin and code.version == version:
                return i
        self.model.operatorCodes.append(
            self.schema.OperatorCodeT(
                builtinCode=builtin, deprecatedBuiltinCode=min(builtin, 127), version=version
            )
        )
        return len(self.model.operatorCodes) - 1

    def name_of(self, operator):
        """Name of an operation, e.g. `"FULLY_CONNECTED"`."""
        return self._utils.opcode_to_name(self.model, operator.opcodeIndex)

    def custom_code(self, operator):
        """Name of a custom operation, or `None` for a builtin one."""
        code = self.model.operatorCodes[operator.opcodeIndex].customCode
        return code.decode() if isinstance(code, bytes) else code

    def _drop_unused_operator_codes(self):
        operators = [o for graph in self.model.subgraphs for o in graph.operators]
        order = sorted({o.opcodeIndex for o in operators})
        place = {old: new for new, old in enumerate(order)}
        self.model.operatorCodes = [self.model.operatorCodes[i] for i in order]
        for operator in operators:
            operator.opcodeIndex = place[operator.opcodeIndex]

    def _drop_unused_buffers(self):
        """Keeps the buffers in use, and of equal constants one."""
        model = self.model
        used = {0} | {t.buffer for graph in model.subgraphs for t in graph.tensors}
        used |= {entry.buffer for entry in model.metadata or []}
        kept, place, first = [], {}, {}
        for old in sorted(used):
            data = model.buffers[old].data
            # By digest: a copy of every constant would double the memory that an export takes.
            content = old if data is None or len(data) == 0 else hashlib.sha256(data).digest()
            if content not in first:
                first[content] = len(kept)
                kept.append(model.buffers[old])
            place[old] = first[content]
        model.buffers = kept
        for holder in [*(t for g in model.subgraphs for t in g.tensors), *(model.metadata or [])]:
            holder.buffer = place[holder.buffer]


class Subgraph:
    """One subgraph of a `Flatbuffer`: adds tensors and operations."""

    def __init__(self, owner, graph):
        self.owner = owner
        self.graph = graph

    @property
    def operators(self):
        """The operations in the order in which they run."""
        return self.graph.operators

    def tensor(self, index):
        """The tensor object at an index."""
        return self.graph.tensors[index]

    def add_tensor(self, name, shape, type_name, content=None, scale=None):
        """Adds a tensor; returns its index.

        Args:
            name: Its name.
            shape: Its shape.
            type_name: Name of its type in the schema.
            content: Bytes of a constant, or `None`.
            scale: Scales of a symmetric quantization (one, or one for each index of axis 0), or
                `None`.
        """
        schema = self.owner.schema
        self.graph.tensors.append(
            schema.TensorT(
                shape=[int(s) for s in shape],
                type=self.owner.type_code(type_name),
                buffer=0 if content is None else self.owner.add_buffer(content),
                name=name.encode(),
                quantization=self.quantization(scale),
                hasRank=True,
            )
        )
        return len(self.graph.tensors) - 1

    def add_constant(self, name, array, scale=None):
        """Adds a constant from a numpy array; returns its index."""
        array = np.ascontiguousarray(array)
        type_name = self.owner.type_of(array.dtype)
        return self.add_tensor(name, array.shape, type_name, array.tobytes(), scale)

    def quantization(self, scale):
        """Symmetric quantization parameters, or `None`."""
        if scale is None:
            return None
        scale = np.atleast_1d(np.asarray(scale, np.float32))
        return self.owner.schema.QuantizationParametersT(
            scale=scale.tolist(), zeroPoint=[0] * len(scale), quantizedDimension=0
        )

    def make_operator(self, name, inputs, outputs, options=None, version=1):
        """Makes an operation; `options` is an object of the schema, e.g. `GatherOptionsT`."""
        kind = 0
        if options is not None:
            kind = getattr(
                self.owner.schema.BuiltinOptions, type(options).__name__.removesuffix("T")
            )
        return self.owner.schema.OperatorT(
            opcodeIndex=self.owner.operator_code(name, version),
            inputs=[int(i) for i in inputs],
            outputs=[int(i) for i in outputs],
            builtinOptionsType=kind,
            builtinOptions=options,
        )

    def emit(self, name, inputs, outputs, options=None, version=1):
        """Adds an operation at the end."""
        operator = self.make_operator(name, inputs, outputs, options, version)
        self.graph.operators = [*self.graph.operators, operator]

    def drop_unused_tensors(self):
        """Removes tensors that no operation, input, output or signature refers to."""
        graph = self.graph
        used = {*graph.inputs, *graph.outputs}
        for operator in graph.operators:
            used.update(i for i in (*operator.inputs, *operator.outputs) if i >= 0)
            used.update(operator.intermediates if operator.intermediates is not None else [])
        order = sorted(int(i) for i in used)
        place = {old: new for new, old in enumerate(order)} | {-1: -1}

        def moved(indices):
            return np.array([place[int(i)] for i in indices], np.int32)

        graph.tensors = [graph.tensors[i] for i in order]
        graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
        for operator in graph.operators:
            operator.inputs, operator.outputs = moved(operator.inputs), moved(operator.outputs)
            if operator.intermediates is not None:
                operator.intermediates = moved(operator.intermediates)
        for signature in self.owner.model.signatureDefs or []:
            if self.owner.model.subgraphs[signature.subgraphIndex] is graph:
                for entry in (*signature.inputs, *signature.outputs):
                    entry.tensorIndex = place[entry.tensorIndex]


def pack(ints, bits):
    """Packs signed integers little end first: two int4 or four int2 to a byte.

    Args:
        ints: Integers in `[-2^(bits-1), 2^(bits-1) - 1]`, any shape; packed in C order.
        bits: 8, 4 or 2.

    Returns:
        Bytes.
    """
    flat = np.ascontiguousarray(ints, np.int8).reshape(-1).view(np.uint8)
    if bits == 8:
        return flat.tobytes()
    each = 8 // bits
    flat = np.pad(flat & (2**bits - 1), (0, -len(flat) % each)).reshape(-1, each)
    shifts = np.arange(each, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(flat << shifts, axis=1).astype(np.uint8).tobytes()
