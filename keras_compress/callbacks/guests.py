"""State that a callback lends to a model for the length of a `fit`.

A variable that the compiled step reads, and that changes while it runs, must be one of the model's:
JAX carries no other through a step. The callback puts it, as a layer, into a layer of the model.
"""

from keras_compress.pruning.prunable import all_layers, unlocked


def lend(layer, attribute, guest):
    """Makes the variables of `guest` (a layer) part of a layer's.

    Args:
        layer: A built layer.
        attribute: Name of the attribute that holds the guest.
        guest: A built layer.
    """
    with unlocked(layer):
        setattr(layer, attribute, guest)


def take_back(model, attribute):
    """Removes the guests of this name from all layers of a model."""
    for layer in all_layers(model):
        guest = getattr(layer, attribute, None)
        if guest is not None:
            with unlocked(layer):
                layer._tracker.untrack(guest)
                delattr(layer, attribute)
