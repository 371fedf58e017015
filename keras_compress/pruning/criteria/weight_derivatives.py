"""`WeightDerivatives`: gradients and curvature of a loss in the weights, sample by sample."""

import keras
import numpy as np
from keras import ops

from keras_compress.pruning.criteria.observer import Observer, compiled
from keras_compress.pruning.prunable import all_layers

_ENTRIES = 2**25


class WeightDerivatives:
    """First and second derivatives of each sample's loss in some weights of a model.

    Layers run in inference mode. Everything is summed over samples in float32.

    Args:
        graph: The model's `CallGraph`, with one output.
        variables: The weights.
        loss: Function `(targets, outputs) -> loss of each sample`, see `sample_loss`.

    Raises:
        ValueError: if the model has several outputs.
    """

    def __init__(self, graph, variables, loss):
        outputs = keras.tree.flatten(graph.outputs)
        if len(outputs) != 1:
            raise ValueError(
                f"Derivatives in the weights are those of one loss; this model has {len(outputs)} "
                "outputs. Give a model with the one that matters: keras.Model(inputs, output)."
            )
        self.variables = list(variables)
        self.loss = loss
        self._observer = Observer(graph, outputs)
        self._tools = _tools(graph)
        self._gradients = compiled(self._loss_gradients)
        self._squares = compiled(self._squared_gradients)
        self._projected = compiled(self._projected_squares)
        self._curvature = compiled(self._output_curvature)
        self._product = compiled(self._hessian_product)
        size = sum(int(np.prod(variable.shape)) for variable in self.variables)
        self._rows = max(1, _ENTRIES // size)

    def gradients(self, inputs, targets):
        """Gradients of each sample's loss.

        Args:
            inputs: List of arrays, one for each input of the model.
            targets: Array.

        Yields:
            For a few samples at a time, a list of arrays `(samples, *shape of the weight)`.
        """
        for batch in self._parts(inputs, targets):
            yield [ops.convert_to_numpy(g) for g in self._gradients(self._values(), *batch)]

    def squared_gradients(self, inputs, targets):
        """Sum over samples of the squares of `gradients`: arrays of the weights' shapes."""
        parts = [self._squares(self._values(), *batch) for batch in self._parts(inputs, targets)]
        return _summed(parts)

    def gauss_newton(self, inputs, targets):
        """Sum over samples of the diagonal of `J^T H J`, as arrays of the weights' shapes.

        `J` is the Jacobian of the model's outputs in the weights and `H` the Hessian of the loss in
        the outputs: exact, by one backward pass for each output.
        """
        parts = []
        for inputs_part, targets_part in self._parts(inputs, targets):
            batch = (self._values(), inputs_part, targets_part)
            curvature = ops.convert_to_numpy(self._curvature(*batch)).astype("float64")
            values, vectors = np.linalg.eigh((curvature + curvature.transpose(0, 2, 1)) / 2)
            # H = sum of the outer products of these columns; a loss is convex in the outputs.
            roots = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None]).astype("float32")
            for column in range(roots.shape[-1]):
                if roots[..., column].any():
                    direction = ops.convert_to_tensor(roots[..., column])
                    parts.append(self._projected(batch[0], inputs_part, direction))
        return _summed(parts) or [np.zeros(tuple(v.shape)) for v in self.variables]

    def hessian_product(self, inputs, targets, vectors):
        """Product of the Hessian of the samples' summed loss with vectors.

        Args:
            inputs: List of arrays, one for each input of the model.
            targets: Array.
            vectors: List of arrays of the weights' shapes.
        """
        batch = ([ops.convert_to_tensor(a) for a in inputs], ops.convert_to_tensor(targets))
        vectors = [ops.convert_to_tensor(vector) for vector in vectors]
        product = self._product(self._values(), *batch, vectors)
        return [ops.convert_to_numpy(part).astype("float64") for part in product]

    # The functions that are differentiated.

    def _outputs(self, values, inputs):
        pairs = list(zip(self.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs):
            (outputs,) = self._observer.run(inputs)
        return outputs

    def _sample_losses(self, values, inputs, targets):
        return self.loss(targets, self._outputs(values, inputs))

    def _loss_gradients(self, values, inputs, targets):
        return self._tools.per_sample(self._sample_losses, values, inputs, targets)

    def _squared_gradients(self, values, inputs, targets):
        found = self._tools.per_sample(self._sample_losses, values, inputs, targets)
        return [ops.sum(ops.square(gradient), 0) for gradient in found]

    def _projected_squares(self, values, inputs, directions):
        def projected(values, inputs, directions):
            outputs = self._outputs(values, inputs)
            return ops.reshape(outputs, ops.shape(directions)) * directions

        found = self._tools.per_sample(projected, values, inputs, directions)
        return [ops.sum(ops.square(gradient), 0) for gradient in found]

    def _output_curvature(self, values, inputs, targets):
        outputs = self._outputs(values, inputs)
        rows = ops.shape(outputs)[0]

        def of_flat(flat):
            return ops.sum(self.loss(targets, ops.reshape(flat, ops.shape(outputs))))

        return self._tools.row_hessians(of_flat, ops.reshape(outputs, (rows, -1)))

    def _hessian_product(self, values, inputs, targets, vectors):
        def total(values):
            return ops.sum(self._sample_losses(values, inputs, targets))

        return self._tools.hessian_product(total, values, vectors)

    def _values(self):
        return [ops.convert_to_tensor(variable) for variable in self.variables]

    def _parts(self, inputs, targets):
        for start in range(0, len(targets), self._rows):
            rows = slice(start, start + self._rows)
            arrays = [ops.convert_to_tensor(array[rows]) for array in inputs]
            yield arrays, ops.convert_to_tensor(targets[rows])


def _summed(parts):
    """Element-wise sum of lists of tensors, in float64."""
    arrays = ([ops.convert_to_numpy(t).astype("float64") for t in part] for part in parts)
    return [sum(column) for column in zip(*arrays, strict=True)]


class _TensorFlow:
    """Differentiation on TensorFlow.

    Args:
        loops: Whether the model has loops in it, whose gradients cannot be vectorized.
    """

    def __init__(self, loops):
        self.loops = loops

    def per_sample(self, function, values, inputs, targets):
        """Gradients in `values` of the sum of `function`, for each row of the rest alone."""
        import tensorflow as tf

        def of_one(row):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                inputs, targets = tf.nest.map_structure(lambda t: t[None], row)
                total = tf.reduce_sum(function(values, inputs, targets))
            return tape.gradient(total, values, unconnected_gradients="zero")

        if self.loops:
            kinds = [tf.TensorSpec(value.shape, value.dtype) for value in values]
            return tf.map_fn(of_one, (inputs, targets), fn_output_signature=kinds)
        return tf.vectorized_map(of_one, (inputs, targets))

    @staticmethod
    def row_hessians(function, rows):
        """Hessians `(rows, n, n)` of a sum of functions of one row each."""
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(rows)
            with tf.GradientTape() as inner:
                inner.watch(rows)
                total = function(rows)
            # A linear loss has no second derivative, and none that a tape could find.
            gradient = inner.gradient(total, rows) + 0.0 * rows
        return outer.batch_jacobian(gradient, rows)

    @staticmethod
    def hessian_product(function, values, vectors):
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(values)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(values)
                total = function(values)
            found = inner.gradient(total, values, unconnected_gradients="zero")
        return outer.gradient(found, values, vectors, unconnected_gradients="zero")


class _Jax:
    """Differentiation on JAX."""

    @staticmethod
    def per_sample(function, values, inputs, targets):
        import jax

        def of_one(inputs, targets):
            inputs, targets = jax.tree.map(lambda t: t[None], (inputs, targets))
            return jax.grad(lambda v: function(v, inputs, targets).sum())(values)

        return jax.vmap(of_one)(inputs, targets)

    @staticmethod
    def row_hessians(function, rows):
        import jax

        # Row i of the gradient depends on row i only: n products give all Hessians at once.
        basis = jax.numpy.eye(rows.shape[-1], dtype=rows.dtype)

        def column(direction):
            tangent = jax.numpy.broadcast_to(direction, rows.shape)
            return jax.jvp(jax.grad(function), (rows,), (tangent,))[1]

        return jax.vmap(column, out_axes=-1)(basis)

    @staticmethod
    def hessian_product(function, values, vectors):
        import jax

        return jax.jvp(jax.grad(function), (values,), (vectors,))[1]


def _tools(graph):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        called = [c.operation for c in graph.calls if isinstance(c.operation, keras.layers.Layer)]
        layers = [layer for one in called for layer in (one, *all_layers(one))]
        return _TensorFlow(any(isinstance(layer, keras.layers.RNN) for layer in layers))
    if backend == "jax":
        return _Jax()
    raise ValueError(
        f"Derivatives in the weights are there for the TensorFlow and JAX backends, not for "
        f"{backend}; set KERAS_BACKEND."
    )
