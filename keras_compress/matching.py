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


def with_form(model, keys, has_form, form, caller):
    """The layers of a model that have some form, and are chosen by keys.

    Args:
        model: A built model.
        keys: A key, a list of them, or `None` for all.
        has_form: Function from a layer to whether it has the form.
        form: What an error calls it: `"a Quant form: Dense, Conv2D"`.
        caller: Name of the function that errors speak for.

    Raises:
        ValueError: if a key chooses no layer, or none that has the form.
    """
    leaves = leaf_layers(model)
    candidates = [layer for layer in leaves if has_form(layer)]
    if keys is None:
        if not candidates:
            raise ValueError(f"{caller}: model '{model.name}' has no layer that has {form}.")
        return candidates
    keys = list(keys) if isinstance(keys, (list, tuple)) else [keys]
    for layer, key in resolve(keys, leaves):
        if not any(matches(key, candidate) for candidate in candidates):
            raise ValueError(
                f"{caller}: {describe(key)} chooses '{layer.name}' ({type(layer).__name__}), and "
                f"no layer that has {form}."
            )
    return [layer for layer, _ in resolve(keys, candidates)]


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
