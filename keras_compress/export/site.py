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

    def value(self, label, shape, type_name="FLOAT32", scale=None):
        """Adds a tensor that an operation will compute.

        An open batch axis stays open: it is the only -1 in the signature of the input.
        """
        index = self.graph.add_tensor(f"{self.name}/{label}", shape, type_name, None, scale)
        signature = self.graph.tensor(self.input).shapeSignature
        if signature is not None and len(signature) and signature[0] == -1 and len(shape):
            self.graph.tensor(index).shapeSignature = [-1, *shape[1:]]
        return index

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
