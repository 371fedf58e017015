"""Models with random weights, and channels that are made to matter to nobody."""

import keras
import numpy as np

from keras_compress.pruning.surgery import FIXED


def randomize(model, seed=0):
    """Gives all weights random values, biases and statistics too, so that nothing is neutral."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed_generator" in variable.path:
            continue
        if "variance" in variable.name or "gamma" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 1 or "alpha" in variable.name:
            variable.assign(rng.normal(0, 0.1, variable.shape))
    return model


def half(graph, seed=0):
    """Which channels stay when half of every group goes, but one of each layer at least."""
    rng = np.random.default_rng(seed)
    kept = np.ones(graph.count, bool)
    for group in graph.groups:
        if not group.normalized:
            kept[rng.choice(group.channels, len(group) // 2, replace=False)] = False
    for producer in graph.producers:
        if not kept[producer.channels].any():
            kept[producer.channels[0]] = True
    return kept


def silence(graph, kept):
    """Zeroes whatever gives a channel that goes a value; those that read it are left alone."""
    for variable in graph.model.variables:
        place = graph.positions(variable).get(0)
        if len(variable.shape) == 1 and place is not None and "variance" not in variable.name:
            variable.assign(keras.ops.convert_to_numpy(variable) * kept[place])
    for producer in graph.producers:
        kernel = keras.ops.convert_to_numpy(producer.variable)
        kept_here = kept[producer.channels] | (producer.channels == FIXED)
        along = [1] * kernel.ndim
        along[producer.place] = -1
        producer.variable.assign(kernel * kept_here.reshape(along))


def samples(model, count=2, seed=1):
    """Normal samples for every input of a model."""
    rng = np.random.default_rng(seed)
    arrays = [
        rng.integers(0, 8, (count, *tensor.shape[1:])).astype(tensor.dtype)
        if "int" in tensor.dtype
        else rng.normal(size=(count, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def outputs(model, x):
    """Outputs of a model as one flat list of arrays."""
    flat = keras.tree.flatten(model(x, training=False))
    return [keras.ops.convert_to_numpy(tensor) for tensor in flat]
