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
