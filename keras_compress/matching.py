"""Choosing layers of a model by name, glob, class or predicate, the same way everywhere."""

import fnmatch
import inspect

import keras

from keras_compress import validation


def matches(key, layer):
    """Whether `key` chooses `layer`.

    Args:
        key: A layer name, a glob (`"block1_*"`), a layer class, a layer, or a predicate
            `layer -> bool`.
        layer: A Keras layer.
    """
    if isinstance(key, str):
        return fnmatch.fnmatchcase(layer.name, key)
    if inspect.isclass(key):
        return isinstance(layer, key)
    if isinstance(key, keras.layers.Layer):
        return layer is key
    if callable(key):
        return bool(key(layer))
    raise ValueError(
        "Layers are chosen by name, glob, layer class, layer or predicate; got "
        f"{type(key).__name__} {key!r}."
    )


def resolve(keys, layers):
    """Gives each layer the first key that chooses it.

    Args:
        keys: Iterable of keys (see `matches`), most important first.
        layers: Layers to choose from.

    Returns:
        List of `(layer, key)`, in the order of `layers`; layers that no key chooses are left out.

    Raises:
        ValueError: if a key chooses no layer (the nearest names are given).
    """
    keys, layers = list(keys), list(layers)
    for key in keys:
        if not any(matches(key, layer) for layer in layers):
            names = [layer.name for layer in layers]
            raise ValueError(
                f"No layer matches {describe(key)}.{validation.did_you_mean(key, names)} The "
                f"model has: {', '.join(names) or 'no layers'}."
            )
    chosen = ((layer, next((k for k in keys if matches(k, layer)), None)) for layer in layers)
    return [(layer, key) for layer, key in chosen if key is not None]


def describe(key):
    """A key as an error message shows it."""
    if isinstance(key, str):
        return repr(key)
    return getattr(key, "__qualname__", None) or repr(key)


def leaf_layers(model):
    """Layers of a model and of the models nested in it, each once; no model, no `InputLayer`."""
    leaves, seen = [], set()
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer) or id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.Model):
            inner = [leaf for leaf in leaf_layers(layer) if id(leaf) not in seen]
            seen.update(map(id, inner))
            leaves.extend(inner)
        else:
            leaves.append(layer)
    return leaves
