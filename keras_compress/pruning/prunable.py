"""Which weights of a model can be pruned, and where their constraint lives."""

import contextlib
import dataclasses

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.pruning.pruning_mask import PruningMask

# Attribute of a layer that holds the weight, attribute that holds its constraint.
_KERNELS = (
    ("kernel", "depthwise_constraint"),
    ("kernel", "kernel_constraint"),
    ("depthwise_kernel", "depthwise_constraint"),
    ("pointwise_kernel", "pointwise_constraint"),
    ("recurrent_kernel", "recurrent_constraint"),
    ("embeddings", "embeddings_constraint"),
)
_OTHERS = (
    ("bias", "bias_constraint"),
    ("gamma", "gamma_constraint"),
    ("beta", "beta_constraint"),
    ("alpha", "alpha_constraint"),
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


@dataclasses.dataclass(eq=False)
class PrunableKernel:
    """One weight that a mask can be put on.

    Args:
        layer: The layer that owns the weight.
        chain: The layers that contain it, outermost first, `layer` last; the model is not in it.
        variable: The weight.
        attribute: Name of the weight in its layer.
        constraint_attribute: Name of the weight's constraint in its layer.
    """

    layer: keras.layers.Layer
    chain: tuple
    variable: keras.Variable
    attribute: str
    constraint_attribute: str

    @property
    def name(self):
        """`layer name/weight`, with the outer layers' names before it."""
        return "/".join([layer.name for layer in self.chain] + [self.attribute])

    @property
    def output_axes(self):
        """Axes of the weight that count outputs."""
        layer, rank = self.layer, len(self.variable.shape)
        if isinstance(layer, _TRANSPOSED):
            return (-2,)
        if self.constraint_attribute == "depthwise_constraint":
            return (-2, -1)
        if isinstance(layer, keras.layers.EinsumDense):
            inputs, rest = layer.equation.split(",")
            weight = rest.split("->")[0]
            axes = tuple(i for i, letter in enumerate(weight) if letter not in inputs)
            return axes or (rank - 1,)
        return (-1,)

    @property
    def masked(self):
        """Boolean array of the weight's shape: what a mask on it prunes."""
        mask = getattr(self.layer, self.constraint_attribute)
        if not isinstance(mask, PruningMask):
            return np.zeros(tuple(self.variable.shape), bool)
        return ~mask.read_mask()

    def matches(self, key):
        """Whether a key (see `kc.matching`) chooses the layer or one that contains it."""
        return any(matching.matches(key, layer) for layer in self.chain)

    def install_mask(self, kind=PruningMask):
        """Puts a `PruningMask` on the weight, or finds the one that is there.

        Args:
            kind: `PruningMask`, or a class of the same arguments that is one.

        Returns:
            `(mask, new)`.
        """
        mask = getattr(self.layer, self.constraint_attribute)
        new = not isinstance(mask, kind)
        if new:
            mask = kind(self.variable.shape, constraint=mask)
        self.set_constraint(mask)
        return mask, new

    def set_constraint(self, constraint):
        """Makes a constraint that of the weight, which then acts after every update.

        Args:
            constraint: The constraint (a layer, if it has state), or `None`.
        """
        if getattr(self.layer, self.constraint_attribute) is not constraint:
            with unlocked(self.layer):
                setattr(self.layer, self.constraint_attribute, constraint)
        step = self.variable.constraint
        if hasattr(step, "after"):
            # The proximal step of another callback: this has the last word.
            step.after = constraint
        else:
            self.variable.constraint = constraint


@contextlib.contextmanager
def unlocked(layer):
    """While it lasts, a built layer takes new state."""
    # Keras locks a built layer against it; its own enable_lora() unlocks it so.
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def prunable_kernels(model):
    """Returns the `PrunableKernel`s of a built model, shared weights once, in layer order."""
    kernels, seen = [], set()

    def walk(layer, chain):
        for attribute, constraint in _KERNELS:
            variable = getattr(layer, attribute, None)
            fits = isinstance(variable, keras.Variable) and hasattr(layer, constraint)
            if chain and fits and id(variable) not in seen:
                seen.add(id(variable))
                kernels.append(PrunableKernel(layer, chain, variable, attribute, constraint))
        for child in _children(layer):
            walk(child, (*chain, child))

    walk(model, ())
    return kernels


def maskable_weights(layer):
    """Returns the `PrunableKernel`s of all weights of a layer itself that can have a mask."""
    found = {}
    for attribute, constraint in (*_KERNELS, *_OTHERS):
        variable = getattr(layer, attribute, None)
        if isinstance(variable, keras.Variable) and hasattr(layer, constraint):
            kernel = PrunableKernel(layer, (layer,), variable, attribute, constraint)
            found.setdefault(id(variable), kernel)
    return list(found.values())


def kernels_of(model, keys, owner):
    """The `PrunableKernel`s of a model's trainable layers that keys choose.

    Args:
        model: A built model.
        keys: Keys of layers, or `None` for all but embeddings.
        owner: Name of the function that errors speak for.

    Returns:
        List of `PrunableKernel`, not empty.
    """
    kernels = [kernel for kernel in prunable_kernels(model) if kernel.layer.trainable]
    if keys is None:
        chosen = [kernel for kernel in kernels if kernel.attribute != "embeddings"]
    else:
        keys = [keys] if isinstance(keys, (str, type)) or callable(keys) else list(keys)
        for key in keys:
            matching.resolve([key], all_layers(model))
            if not any(kernel.matches(key) for kernel in kernels):
                raise ValueError(
                    f"{owner}: {matching.describe(key)} matches no trainable layer with a kernel. "
                    f"Layers with one: {', '.join(kernel.name for kernel in kernels)}."
                )
        chosen = [kernel for kernel in kernels if any(kernel.matches(key) for key in keys)]
    if not chosen:
        raise ValueError(
            f"{owner}: model '{model.name}' has no trainable layer with a kernel; train it, or "
            "call it on a batch, first."
        )
    return chosen


def all_layers(model):
    """Every layer in a model, however deep, each once."""
    found = {}

    def walk(layer):
        for child in _children(layer):
            if id(child) not in found:
                found[id(child)] = child
                walk(child)

    walk(model)
    return list(found.values())


def unbuilt_layers(model):
    """Layers that will have a kernel once they are called, and have none yet."""
    return [
        layer
        for layer in all_layers(model)
        if not layer.built and any(hasattr(layer, constraint) for _, constraint in _KERNELS)
    ]


def trained_model(model, owner):
    """The model whose weights a callback prunes: of a `Distiller`, the student.

    Args:
        model: The model that is fitted.
        owner: The callback, for errors.

    Raises:
        ValueError: if some of its layers have no weights yet.
    """
    unbuilt = [layer.name for layer in unbuilt_layers(model)]
    if not model.built or unbuilt:
        raise ValueError(
            f"{validation.prefix(owner)}model '{model.name}' has layers without weights "
            f"({', '.join(unbuilt) or 'all'}); call the model on a batch before fit()."
        )
    # The teacher stays as it is, and the adapters are not kept.
    return model.student if isinstance(model, keras.distillation.Distiller) else model


def _children(layer):
    children = layer._flatten_layers(include_self=False, recursive=False)
    return [child for child in children if not isinstance(child, PruningMask)]


def output_layers(model):
    """Layers with weights that give a graph model's outputs, past activations and the like."""
    found = []

    def walk(tensors):
        for tensor in tensors:
            operation, node, _ = tensor._keras_history
            if isinstance(operation, keras.Model) and hasattr(operation, "outputs"):
                walk(operation.outputs)
            elif getattr(operation, "weights", None):
                found.append(operation)
            else:
                walk(operation._inbound_nodes[node].input_tensors)

    walk(getattr(model, "outputs", None) or ())
    return found
