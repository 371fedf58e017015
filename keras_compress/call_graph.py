"""A model's graph: as one flat list of calls, and made anew, call by call."""

import dataclasses

import keras

from keras_compress.convert import new_like


@dataclasses.dataclass(eq=False)
class Value:
    """What a call gives: a tensor of the model, without its data.

    Attributes:
        call: The `Call` that gives it, or `None` for an input of the model.
        readers: The calls that take it; `None` stands for the model's own output.
        shape: With the batch axis; `None` for a size that is open.
    """

    call: object = None
    readers: list = dataclasses.field(default_factory=list)
    shape: tuple = ()


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer or an operation.

    Attributes:
        operation: The layer, or the `keras.Operation`.
        args: Positional arguments, nested, with `Value`s in the place of tensors.
        kwargs: Keyword arguments, likewise.
        path: Names of the models around it and its own.
        outputs: List of `Value`.
    """

    operation: object
    args: tuple
    kwargs: dict
    path: tuple
    outputs: list = dataclasses.field(default_factory=list)

    @property
    def inputs(self):
        """All `Value`s among the arguments."""
        flat = keras.tree.flatten((self.args, self.kwargs))
        return [value for value in flat if isinstance(value, Value)]

    @property
    def output(self):
        """The one output."""
        (value,) = self.outputs
        return value

    @property
    def sole_reader(self):
        """The one call that takes the one output, or `None`."""
        if len(self.outputs) != 1 or len(self.output.readers) != 1:
            return None
        return self.output.readers[0]


class CallGraph:
    """The calls of a Sequential or functional model, in an order in which they can run.

    Args:
        model: A built model with a graph. Nothing is called, and no node added to its layers.

    Attributes:
        inputs: `Value`s in the order of `model.inputs`.
        outputs: `Value`s, nested as the model gives its outputs.
        calls: List of `Call`.
    """

    def __init__(self, model):
        self.calls = []
        self.inputs = [Value(shape=tuple(tensor.shape)) for tensor in model.inputs]
        self.outputs = self._walk(model, self.inputs, ())
        for value in keras.tree.flatten(self.outputs):
            value.readers.append(None)

    def _walk(self, model, values, path):
        if isinstance(model, keras.Sequential):
            (value,) = values
            for layer in model.layers:
                shape = tuple(layer.compute_output_shape(value.shape))
                value = self._visit(layer, (value,), {}, [shape], path)
            return value
        table = {id(tensor): value for tensor, value in zip(model.inputs, values, strict=True)}

        def known(leaf):
            return table.get(id(leaf), leaf)

        for operation, node in nodes(model):
            args = keras.tree.map_structure(known, tuple(node.arguments.args))
            kwargs = keras.tree.map_structure(known, dict(node.arguments.kwargs))
            shapes = [tuple(tensor.shape) for tensor in node.output_tensors]
            given = self._visit(operation, args, kwargs, shapes, path)
            for tensor, value in zip(node.output_tensors, keras.tree.flatten(given), strict=True):
                table[id(tensor)] = value
        return keras.tree.map_structure(known, model.output)

    def _visit(self, operation, args, kwargs, shapes, path):
        if is_graph(operation):
            values = [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, Value)]
            return self._walk(operation, values, (*path, operation.name))
        call = Call(operation, args, kwargs, (*path, operation.name))
        call.outputs = [Value(call, shape=shape) for shape in shapes]
        for value in call.inputs:
            value.readers.append(call)
        self.calls.append(call)
        return call.output if len(shapes) == 1 else call.outputs


def is_graph(operation):
    """Whether an operation is a model whose graph can be opened."""
    return isinstance(operation, keras.Sequential) or hasattr(operation, "operations")


def nodes(model):
    """Pairs of an operation and a node of it, each after those that it takes its inputs from.

    Args:
        model: A functional model.
    """
    inputs = {id(tensor) for tensor in model.inputs}
    order, done = [], set()
    stack = [(tensor, False) for tensor in reversed(keras.tree.flatten(model.output))]
    while stack:
        tensor, ready = stack.pop()
        if id(tensor) in inputs:
            continue
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            order.append((operation, node))
            continue
        stack.append((tensor, True))
        stack.extend((needed, False) for needed in reversed(node.input_tensors))
    return order


class Rebuilder:
    """Makes a model anew, call by call: same class, nesting and names, and the weights' values.

    Subclasses may say in `remake` what takes a layer's place, and in `call` what a call becomes.

    Args:
        model: A built Sequential or functional model. It is not changed.
        changes: Dict from the id of a layer or operation to what `remake` is to give for it.
    """

    def __init__(self, model, changes=None):
        self.model = model
        self._changes = changes or {}
        self._made, self._values = {}, []

    def run(self):
        """The new model, compiled like the old one if that is compiled."""
        source = self.model
        inputs = [
            keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=_input_name(tensor))
            for tensor in source.inputs
        ]
        model = self._model(source, inputs)
        for chain, arrays in self._values:
            variables = [v for new in chain for v in getattr(new, "variables", ())]
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)
        if source.compiled:
            model.compile_from_config(source.get_compile_config())
        return model

    def remake(self, operation):
        """What takes the place of a layer or an operation.

        Returns:
            `(new, arrays)`: the new one, or a list of those that follow one another, and the values
            of its variables, in their order (none: as they are initialized); `None` for `new` where
            the input is handed on.
        """
        return new_like(operation, operation.get_config()), values_of(operation)

    def call(self, operation, new, args, kwargs):
        """The outputs of one call in a functional model.

        Args:
            operation: The old layer or operation.
            new: What takes its place; of several, the first.
            args: Positional arguments, with the new tensors.
            kwargs: Keyword arguments, likewise.
        """
        return new(*args, **kwargs)

    def _model(self, source, inputs):
        """A new model, top or nested, on new inputs."""
        if isinstance(source, keras.Sequential):
            model = keras.Sequential(name=source.name, trainable=source.trainable)
            model.add(inputs[0])
            taken = inputs
            for layer in source.layers:
                nested = self._nested(layer, taken)
                for new in [nested] if nested else self._operation(layer):
                    model.add(new)
                    taken = model.outputs
            return model
        tensors = {id(old): new for old, new in zip(source.inputs, inputs, strict=True)}

        def known(leaf):
            return tensors.get(id(leaf), leaf)

        for operation, node in nodes(source):
            args, kwargs = keras.tree.map_structure(
                known, (tuple(node.arguments.args), dict(node.arguments.kwargs))
            )
            taken = [tensors[id(tensor)] for tensor in node.input_tensors]
            nested = self._nested(operation, taken)
            chain = [nested] if nested else self._operation(operation)
            given = self.call(operation, chain[0], args, kwargs) if chain else taken[0]
            for new in chain[1:]:
                given = new(given)
            outputs = keras.tree.flatten(given)
            tensors.update(zip(map(id, node.output_tensors), outputs, strict=True))
        structure = keras.tree.pack_sequence_as(source.input, inputs)
        outputs = keras.tree.map_structure(known, source.output)
        return type(source)(structure, outputs, name=source.name, trainable=source.trainable)

    def _nested(self, source, outer):
        """The new form of a nested model, made at its first call; `None` for other operations."""
        if not is_graph(source):
            return None
        if id(source) not in self._made:
            inputs = [
                keras.Input(batch_shape=new.shape, dtype=old.dtype, name=_input_name(old))
                for old, new in zip(source.inputs, outer, strict=True)
            ]
            self._made[id(source)] = self._model(source, inputs)
        return self._made[id(source)]

    def _operation(self, operation):
        """List of what takes the place of a layer or an operation, made at its first call."""
        if id(operation) not in self._made:
            new, arrays = self._changes.get(id(operation)) or self.remake(operation)
            chain = new if isinstance(new, list) else [] if new is None else [new]
            self._made[id(operation)] = chain
            if len(arrays):
                self._values.append((chain, arrays))
        return self._made[id(operation)]


def values_of(operation):
    """Values of a layer's variables, in their order; of an operation, none."""
    return [keras.ops.convert_to_numpy(v) for v in getattr(operation, "variables", ())]


def _input_name(tensor):
    return tensor._keras_history.operation.name
