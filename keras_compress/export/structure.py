"""Inputs and outputs of a model as its call takes and gives them, with names for a signature."""

import re

import keras


def input_structure(model):
    """The model's symbolic inputs, nested as its call takes them."""
    return _structure(model, "input")


def output_structure(model):
    """The model's symbolic outputs, nested as its call gives them."""
    return _structure(model, "output")


def _structure(model, side):
    tensors = getattr(model, f"{side}s")
    # A Sequential model has no `input` of its own before it is called.
    if isinstance(model, keras.Sequential):
        return tensors[0]
    return getattr(model, side)


def input_names(model):
    """Names of the inputs in the order of `model.inputs`, fit for keyword arguments."""
    return _unique([tensor.name for tensor in model.inputs])


def output_names(model):
    """Names of the outputs in the order of `keras.tree.flatten(output)`.

    Dict keys where the model gives a dict, else the names of the layers that give the outputs.
    """
    structure = output_structure(model)
    if isinstance(structure, dict):
        return _unique(sorted(structure))
    if isinstance(model, keras.Sequential):
        return _unique([model.layers[-1].name])
    outputs = keras.tree.flatten(structure)
    return _unique([tensor._keras_history.operation.name for tensor in outputs])


def layer_paths(model):
    """Names of a model's layers that tell apart layers of nested models.

    Args:
        model: A Keras model.

    Returns:
        List of `(path, layer)` in the order of `matching.leaf_layers`: a path is the layer's name
        behind those of the models it is nested in (`"encoder/fc1"`), in characters that TensorFlow
        takes in a name scope. No path is the beginning of another.
    """
    paths, taken, seen = [], set(), set()

    def walk(model, above):
        for layer in model.layers:
            if isinstance(layer, keras.layers.InputLayer) or id(layer) in seen:
                continue
            seen.add(id(layer))
            # A scope must begin with a letter or a digit.
            name = re.sub(r"^(?=[^A-Za-z0-9])", "layer", re.sub(r"[^\w.-]", "_", layer.name))
            path, number = above + name, 1
            while path in taken:
                path, number = f"{above}{name}_{number}", number + 1
            taken.add(path)
            if isinstance(layer, keras.Model):
                walk(layer, f"{path}/")
            else:
                paths.append((path, layer))

    walk(model, "")
    return paths


def path_in(name, paths):
    """The path of the layer in whose scope something was named, or `None`.

    Args:
        name: Name of an operation or tensor; one that came of several operations has theirs,
            joined by `;`.
        paths: Paths as `layer_paths` gives them; of several that fit, the first one counts.
    """
    parts = name.split(";")
    return next((path for path in paths if any(p.startswith(f"{path}/") for p in parts)), None)


def _unique(names):
    unique = []
    for name in names:
        name = base = re.sub(r"\W", "_", str(name))
        number = 1
        while name in unique:
            name = f"{base}_{number}"
            number += 1
        unique.append(name)
    return unique
