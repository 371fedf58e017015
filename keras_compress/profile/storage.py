"""Bits that the weights of a model need in their stored form."""

import math

from keras_compress.layers.base import dtype_bits


def storage_bits(model):
    """Bits that a model's weights need: compressed layers in their stored form, others as they are.

    A layer that has a method `storage_bits()` is asked; every other weight counts its size times
    the bits of its dtype.

    Args:
        model: A built Keras model.

    Returns:
        An integer.
    """
    total, counted = 0, set()
    for layer in model._flatten_layers(include_self=False):
        if hasattr(layer, "storage_bits") and not counted.issuperset(map(id, layer.weights)):
            total += layer.storage_bits()
            counted.update(id(weight) for weight in layer.weights)
    rest = (weight for weight in model.weights if id(weight) not in counted)
    return total + sum(math.prod(w.shape) * dtype_bits(w.dtype) for w in rest)
