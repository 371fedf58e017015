"""State that a callback lends to a model for the length of a `fit`.

A variable that the compiled step reads, and that changes while it runs, must be one of the model's:
JAX carries no other through a step. The callback puts it, as a layer, into a layer of the model.
"""

import contextlib

from keras_compress.pruning.prunable import all_layers


def lend(layer, attribute, guest):
    """Makes the variables of `guest` (a layer) part of a layer's.

    Args:
        layer: A built layer.
        attribute: Name of the attribute that holds the guest.
        guest: A built layer.
    """
    with _unlocked(layer):
        setattr(layer, attribute, guest)


def take_back(model, attribute):
    """Removes the guests of this name from all layers of a model."""
    for layer in all_layers(model):
        guest = getattr(layer, attribute, None)
        if guest is not None:
            with _unlocked(layer):
                layer._tracker.untrack(guest)
                delattr(layer, attribute)


@contextlib.contextmanager
def _unlocked(layer):
    # Keras locks a built layer against new state; its own enable_lora() unlocks it so.
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()
