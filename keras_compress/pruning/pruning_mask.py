"""`PruningMask`: the constraint that holds zeros in the compiled step."""

import contextlib
import contextvars

import keras
import numpy as np
from keras import ops

# Values of mask variables in the step that JAX is tracing, by id of the variable.
_traced_values = contextvars.ContextVar("traced_values", default=None)


@keras.saving.register_keras_serializable(package="keras_compress")
class PruningMask(keras.layers.Layer):
    """Weight constraint that zeroes what a mask prunes, after every update.

    `kc.callbacks.MagnitudePruning` puts it on kernels; users rarely make one. It is a layer so that
    the mask is state of the layer that it constrains: it is in `model.weights`, and `.keras` files,
    `save_weights` and `BackupAndRestore` carry it. `kc.pruning.strip` takes it off.

    Args:
        shape: Shape of the weight.
        constraint: The constraint that the weight had before; it is applied first.
        **kwargs: `name`, as in Keras.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> mask = kc.pruning.PruningMask((2, 2))
    >>> mask.set_mask([[True, False], [True, True]])
    >>> keras.ops.convert_to_numpy(mask(keras.ops.ones((2, 2))))
    array([[1., 0.],
           [1., 1.]], dtype=float32)
    """

    def __init__(self, shape, constraint=None, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.constraint = keras.constraints.get(constraint)
        self.mask = self.add_weight(
            name="mask",
            shape=self.shape,
            initializer="ones",
            # Not boolean: TensorFlow would cast it at every step, for longer than the product.
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        # Origin (training batches seen when the schedule began), last step that the schedule was
        # asked about, and which schedule that was.
        self.progress = self.add_weight(
            name="progress",
            shape=(3,),
            initializer="zeros",
            dtype="int32",
            trainable=False,
            autocast=False,
        )
        self.built = True
        self.note_mask()

    def __call__(self, weight):
        if self.constraint is not None:
            weight = self.constraint(weight)
        weight = ops.convert_to_tensor(weight)
        # A product: TensorFlow's select takes three times as long, at every step.
        return ops.multiply(weight, ops.cast(current_value(self.mask, self._noted), weight.dtype))

    def set_mask(self, mask):
        """Replaces the mask.

        Args:
            mask: Boolean array of the weight's shape, true where weights stay.
        """
        self.mask.assign(np.asarray(mask, bool).astype("float32"))
        self.note_mask()

    def read_mask(self):
        """The mask: boolean array of the weight's shape, true where weights stay."""
        return ops.convert_to_numpy(self.mask) > 0

    def note_mask(self):
        """Takes note of the mask, after something else than `set_mask` has changed it."""
        self._noted = noted_value(self.mask)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.note_mask()

    def get_config(self):
        return {
            **super().get_config(),
            "shape": self.shape,
            "constraint": keras.constraints.serialize(self.constraint),
        }


def noted_value(variable):
    """A copy of a constraint's state for `current_value`, or `None` where none is needed."""
    return ops.convert_to_numpy(variable) if keras.backend.backend() == "jax" else None


def current_value(variable, noted):
    """Value of a constraint's state inside of a training step.

    Args:
        variable: Non-trainable variable of the constraint.
        noted: What `noted_value` gave when the variable was last assigned.
    """
    if keras.backend.backend() != "jax":
        return variable
    # Keras applies constraints in a scope that knows trainable and optimizer variables only;
    # in it, any other variable reads as its initial value.
    return (_traced_values.get() or {}).get(id(variable), noted)


@contextlib.contextmanager
def traced_masks(variables, values):
    """While it lasts, masks among `variables` read as the (traced) `values`."""
    token = _traced_values.set(dict(zip(map(id, variables), values, strict=True)))
    try:
        yield
    finally:
        _traced_values.reset(token)


def carry_masks(model):
    """Makes a model's jitted JAX step read its masks from the step's state.

    Without it a mask would be a constant of the compiled step, and each new mask a compilation.
    Other backends read variables where they are and need nothing.
    """
    step = model.train_step
    if keras.backend.backend() != "jax" or getattr(step, "carries_masks", False):
        return
    if keras.config.is_nnx_enabled():
        raise ValueError(
            "Pruning masks cannot be carried through Keras's NNX training step; switch NNX off "
            "(KERAS_NNX_ENABLED=false) to prune during fit on the JAX backend."
        )

    def train_step(state, data):
        with traced_masks(model.non_trainable_variables, state[1]):
            return step(state, data)

    train_step.carries_masks = True
    model.train_step = train_step
    model.train_function = None
