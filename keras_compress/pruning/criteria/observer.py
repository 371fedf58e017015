"""`Observer`: the tensors inside a model, and the loss's gradients to them, batch by batch."""

import functools

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.call_graph import Value


class Observer:
    """Runs a model's graph and hands on tensors inside it; one compiled pass gives all of them.

    Layers run in inference mode. The model is not changed, and no node is added to its layers.

    Args:
        graph: The model's `CallGraph`.
        values: `Value`s of the graph to look at.
    """

    def __init__(self, graph, values):
        self.graph = graph
        self.values = list(values)
        self._calls = _needed(graph, self.values)
        self._forward = self._backward = self._scaled = None

    def activations(self, inputs):
        """The values' tensors for a batch.

        Args:
            inputs: List of arrays, one for each input of the model.

        Returns:
            List of numpy arrays.
        """
        if self._forward is None:
            self._forward = compiled(self.run)
        return [ops.convert_to_numpy(t) for t in self._forward(_tensors(inputs))]

    def run(self, inputs):
        """The values as tensors, not compiled: to be part of another function.

        Args:
            inputs: List of tensors, one for each input of the model.
        """
        return self._run(inputs, self._calls, self.values)

    def gradients(self, inputs, targets, loss):
        """The values' tensors and the gradients of the loss to them.

        Args:
            inputs: List of arrays, one for each input of the model.
            targets: Array.
            loss: Function `(targets, outputs) -> loss of each sample`, see `sample_loss`.

        Returns:
            `(list of arrays, list of arrays)`: row i of a gradient is that of sample i's own loss.
        """
        if self._backward is None:
            self._backward = _gradient_function(self, loss)
        tensors, gradients = self._backward(_tensors(inputs), ops.convert_to_tensor(targets))
        return (
            [ops.convert_to_numpy(t) for t in tensors],
            [ops.convert_to_numpy(t) for t in gradients],
        )

    def losses(self, inputs, targets, loss, factors):
        """The loss of each sample when the values' tensors are multiplied by factors.

        Args:
            inputs: List of arrays, one for each input of the model.
            targets: Array.
            loss: As of `gradients`.
            factors: List of arrays, one for each value, that broadcast to its tensor.

        Returns:
            Array.
        """
        if self._scaled is None:
            (output,) = keras.tree.flatten(self.graph.outputs)
            places = {value: index for index, value in enumerate(self.values)}

            def scaled(inputs, targets, factors):
                def replace(value, tensor):
                    if value not in places:
                        return tensor
                    return tensor * ops.cast(factors[places[value]], tensor.dtype)

                (outputs,) = self._run(inputs, self.graph.calls, [output], replace)
                return loss(targets, outputs)

            self._scaled = compiled(scaled)
        losses = self._scaled(_tensors(inputs), ops.convert_to_tensor(targets), _tensors(factors))
        return ops.convert_to_numpy(losses)

    def _run(self, inputs, calls, wanted, replace=None):
        """Tensors of `wanted`; `replace(value, tensor)` may put another in a tensor's place."""
        table = dict(zip(self.graph.inputs, inputs, strict=True))

        def known(leaf):
            return table[leaf] if isinstance(leaf, Value) else leaf

        for call in calls:
            args, kwargs = keras.tree.map_structure(known, (call.args, call.kwargs))
            outputs = keras.tree.flatten(call.operation(*args, **kwargs))
            if replace is not None:
                outputs = [replace(v, t) for v, t in zip(call.outputs, outputs, strict=True)]
            table.update(zip(call.outputs, outputs, strict=True))
        return [table[value] for value in wanted]


def sample_loss(model, loss=None, owner=None):
    """A function `(targets, outputs) -> loss of each sample`.

    Args:
        model: The model; its compiled loss is taken if `loss` is `None`.
        loss: A Keras loss, its name, or a function `(y_true, y_pred) -> a loss of each sample`.
        owner: Object or name that error messages begin with.
    """
    loss = getattr(model, "loss", None) if loss is None else loss
    if loss is None or isinstance(loss, (list, dict)):
        raise ValueError(
            f"{validation.prefix(owner)}the gradients are those of a loss, and model "
            f"'{model.name}' is not compiled with one loss. Compile it, or give "
            'loss="sparse_categorical_crossentropy" for example.'
        )
    loss = keras.losses.get(loss)

    def of_samples(targets, outputs):
        if keras.backend.is_float_dtype(targets.dtype):
            # As `fit` does.
            targets = ops.cast(targets, outputs.dtype)
        # A Loss object averages over the batch; its call gives a value for each sample.
        values = (
            loss.call(targets, outputs)
            if isinstance(loss, keras.losses.Loss)
            else loss(targets, outputs)
        )
        return ops.mean(ops.reshape(values, (ops.shape(outputs)[0], -1)), axis=1)

    return of_samples


def _needed(graph, values):
    """The calls that some values depend on, in order."""
    wanted, needed = set(values), []
    for call in reversed(graph.calls):
        if not wanted.isdisjoint(call.outputs):
            needed.append(call)
            wanted.update(call.inputs)
    return needed[::-1]


def _tensors(inputs):
    return [ops.convert_to_tensor(array) for array in inputs]


def compiled(function):
    """A function of tensors, compiled where the backend in use compiles."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # A partial has no code of its own: TensorFlow counts how often one code is traced, and
        # would warn of the observers of several models.
        return tf.function(functools.partial(function), reduce_retracing=True)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def _gradient_function(observer, loss):
    """Function `(inputs, targets) -> (tensors, gradients)` for the backend in use."""
    graph, values = observer.graph, observer.values
    (output,) = keras.tree.flatten(graph.outputs)

    def total(inputs, targets, replace=None):
        *tensors, outputs = observer._run(inputs, graph.calls, [*values, output], replace)
        # A sum: the gradient of a row is that of its own sample.
        return ops.sum(loss(targets, outputs)), tensors

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def gradients(inputs, targets):
            with tf.GradientTape() as tape:

                def watched(value, tensor):
                    if value in wanted:
                        tape.watch(tensor)
                    return tensor

                loss_sum, tensors = total(inputs, targets, watched)
            found = tape.gradient(loss_sum, tensors, unconnected_gradients="zero")
            return tensors, found

        wanted = set(values)
        return compiled(gradients)
    if backend == "jax":
        import jax

        places = {value: index for index, value in enumerate(values)}

        def shifted(shifts, inputs, targets):
            def replace(value, tensor):
                return tensor + shifts[places[value]] if value in places else tensor

            return total(inputs, targets, replace)

        def gradients(inputs, targets):
            shapes = jax.eval_shape(lambda *a: total(*a)[1], inputs, targets)
            zeros = [jax.numpy.zeros(s.shape, s.dtype) for s in shapes]
            found, tensors = jax.grad(shifted, has_aux=True)(zeros, inputs, targets)
            return tensors, found

        return compiled(gradients)
    raise ValueError(
        f"Gradients inside a model are there for the TensorFlow and JAX backends, not for "
        f"{backend}; set KERAS_BACKEND."
    )


def finite(array, what, owner=None):
    """Returns an array, or raises `ValueError` naming `what` if it holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise ValueError(
            f"{validation.prefix(owner)}{what} is not finite; look for NaN in the model's weights."
        )
    return array
