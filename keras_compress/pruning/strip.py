"""`strip`: a pruned model without the machinery of pruning."""

import keras

from keras_compress.pruning.prunable import all_layers
from keras_compress.pruning.pruning_mask import PruningMask

_MASKS = ("keras_compress>PruningMask", "keras_compress>SurgeryMask")


def strip(model):
    """Returns a plain copy of a pruned model: masks gone, zeros kept.

    Constraints that weights had before pruning are restored. The copy has the weights, the
    configuration and (to the last bit) the outputs of the model, and nothing of this package's in
    it: it can be saved, exported and loaded where `keras_compress` is not installed.

    Args:
        model: A built model, pruned by a callback of `kc.callbacks`. It is not changed. A
            subclassed model must have `get_config`.

    Returns:
        A new model of the same class, compiled like `model` if that is compiled and has a graph.

    Raises:
        ValueError: if the model is not built or cannot be made again from its configuration.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> pruning = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.75))
    >>> history = model.fit(np.ones((8, 8)), np.ones((8, 4)), callbacks=[pruning], verbose=0)
    >>> plain = kc.pruning.strip(model)
    >>> len(plain.weights), int((plain.layers[0].kernel.numpy() == 0).sum())
    (2, 24)
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"strip takes a keras.Model; got {type(model).__name__}.")
    if not model.built:
        raise ValueError(
            f"strip: model '{model.name}' is not built; give it a keras.Input or call it first."
        )
    if isinstance(model, keras.Sequential) or hasattr(model, "operations"):
        new = keras.models.clone_model(model, clone_function=_plain_copy, recursive=True)
    else:
        new = _copy_subclassed(model)
    masks = {
        id(variable)
        for layer in model._flatten_layers()
        if isinstance(layer, PruningMask)
        for variable in layer.variables
    }
    kept = [variable for variable in _state(model) if id(variable) not in masks]
    for source, target in zip(kept, _state(new), strict=True):
        target.assign(keras.ops.convert_to_numpy(source))
    return new


def _state(model):
    """Variables of the layers; `model.variables` also has those of metrics."""
    variables, seen = [], set()
    for layer in [*all_layers(model), model]:
        for variable in [*layer.weights, *layer.non_trainable_variables]:
            if id(variable) not in seen:
                seen.add(id(variable))
                variables.append(variable)
    return variables


def _plain_copy(layer):
    return type(layer).from_config(_without_masks(layer.get_config()))


def _copy_subclassed(model):
    try:
        new = type(model).from_config(_without_masks(model.get_config()))
        new.build_from_config(model.get_build_config())
    except Exception as error:
        raise ValueError(
            f"strip: model '{model.name}' is subclassed and could not be made again from its "
            f"configuration ({error}). Give it a get_config(), or make a fresh model without "
            "pruning, build it, and use its load_weights() on a file from save_weights() of this "
            "one."
        ) from error
    return new


def _without_masks(config):
    """A configuration with each serialised mask replaced by the constraint that it covers."""
    if isinstance(config, dict):
        if config.get("registered_name") in _MASKS:
            return config["config"]["constraint"]
        return {key: _without_masks(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_masks(value) for value in config)
    return config
