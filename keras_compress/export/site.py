"""Site: the place of one marker in a .tflite, where the writer puts a stored kernel."""

import numpy as np


class Site:
    """A marker in the graph, with the bias and the activation behind it, and its replacement.

    Operations are collected with `emit` and take the marker's place with `finish`.

    Args:
        flatbuffer: The `Flatbuffer`.
        graph: The `Subgraph` that the marker is in.
        operator: The custom operation.
        name: Name of the layer, with which names of new tensors begin.
        number: Number of the marker; layers of nested models may share a name.
    """

    def __init__(self, flatbuffer, graph, operator, name, number):
        self.flatbuffer = flatbuffer
        self.schema = flatbuffer.schema
        self.graph = graph
        self.name = name
        self.variable_name = f"{name}/kernel/{number}"
        self.input = int(operator.inputs[0])
        self.output = int(operator.outputs[0])
        self.bias = -1
        self.activation = self.schema.ActivationFunctionType.NONE
        #: Bytes of the constants added for the kernel.
        self.nbytes = 0
        self._replaced = [operator]
        self._operators = []
        self._absorb_bias()
        self._absorb_activation()

    @property
    def input_shape(self):
        """Shape of the input; 1 stands for an open batch axis."""
        return [int(s) for s in self.graph.tensor(self.input).shape]

    @property
    def output_shape(self):
        """Shape of the output."""
        return [int(s) for s in self.graph.tensor(self.output).shape]

    def signature(self, tensor):
        """Shape of a tensor with -1 for open axes."""
        tensor = self.graph.tensor(tensor)
        signature = tensor.shapeSignature
        known = signature is not None and len(signature)
        return [int(s) for s in (signature if known else tensor.shape)]

    def _sole_reader(self):
        if self.output in self.graph.graph.outputs:
            return None
        readers = [o for o in self.graph.operators if self.output in o.inputs]
        return readers[0] if len(readers) == 1 else None

    def _absorb_bias(self):
        add = self._sole_reader()
        if add is None or self.flatbuffer.name_of(add) != "ADD":
            return
        other = next((int(i) for i in add.inputs if i != self.output), self.output)
        tensor = self.graph.tensor(other)
        if list(tensor.shape) != self.output_shape[-1:] or self.flatbuffer.data(tensor) is None:
            return
        self.bias = other
        self.activation = add.builtinOptions.fusedActivationFunction
        self._take(add)

    def _absorb_activation(self):
        kinds = self.schema.ActivationFunctionType
        reader = self._sole_reader()
        fused = {"RELU": kinds.RELU, "RELU6": kinds.RELU6}
        name = reader and self.flatbuffer.name_of(reader)
        if name in fused and self.activation == kinds.NONE:
            self.activation = fused[name]
            self._take(reader)

    def _take(self, operator):
        self._replaced.append(operator)
        self.output = int(operator.outputs[0])

    def constant(self, label, array, scale=None, type_name=None, content=None):
        """Adds a constant; `content` gives packed bytes of a type that numpy does not have."""
        name = f"{self.name}/{label}"
        if content is None:
            content = np.ascontiguousarray(array).tobytes()
            type_name = type_name or self.flatbuffer.type_of(array.dtype)
        self.nbytes += len(content)
        return self.graph.add_tensor(name, np.shape(array), type_name, content, scale)

    def float_constant(self, label, array):
        """Adds float32 values for an operation to read, stored in the precision of the array."""
        stored = self.constant(label, array)
        return self.widened(stored) if array.dtype == np.float16 else stored

    def widened(self, tensor):
        """DEQUANTIZE of a constant to float32: done once, when the model is loaded."""
        stored = self.graph.tensor(tensor)
        label = stored.name.decode().removeprefix(f"{self.name}/")
        output = self.value(f"{label}_float", stored.shape)
        # Version 3 has float16, version 5 a scale for each channel.
        version = 5 if stored.quantization is not None else 3
        options = self.schema.DequantizeOptionsT()
        self.emit("DEQUANTIZE", [tensor], [output], options, version)
        return output

    def value(self, label, shape):
        """Adds a float32 tensor that an operation will compute.

        Args:
            label: Name under that of the layer.
            shape: Its shape; -1 for an open axis.
        """
        index = self.graph.add_tensor(f"{self.name}/{label}", [abs(s) for s in shape], "FLOAT32")
        if -1 in shape:
            self.graph.tensor(index).shapeSignature = [int(s) for s in shape]
        return index

    def indices(self, label, values):
        """Adds a constant of integers that say how an operation works: axes, sizes, places."""
        return self.graph.add_constant(f"{self.name}/{label}", np.array(values, np.int32))

    def reshape(self, tensor, shape):
        """RESHAPE; at most one axis may be open."""
        output = self.value("reshape", shape)
        self.emit_reshape(tensor, output, shape)
        return output

    def emit_reshape(self, tensor, output, shape):
        """RESHAPE to a given tensor."""
        options = self.schema.ReshapeOptionsT()
        options.newShape = list(shape)
        self.emit("RESHAPE", [tensor, self.indices("shape", shape)], [output], options)

    def emit(self, name, inputs, outputs, options=None, version=1):
        """Adds an operation to the replacement."""
        self._operators.append(self.graph.make_operator(name, inputs, outputs, options, version))

    def finish(self):
        """Puts the replacement in the marker's place."""
        operators = []
        for operator in self.graph.operators:
            if operator is self._replaced[0]:
                operators += self._operators
            elif all(operator is not taken for taken in self._replaced):
                operators.append(operator)
        self.graph.graph.operators = operators


def sites(flatbuffer, number_of):
    """Every marker of a model: pairs of its number and a `(graph, operator)`."""
    found = []
    for graph in flatbuffer.subgraphs:
        for operator in graph.operators:
            if flatbuffer.name_of(operator) == "CUSTOM":
                number = number_of(flatbuffer.custom_code(operator))
                if number is not None:
                    found.append((number, graph, operator))
    return found
