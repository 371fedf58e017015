"""`convert`: swap layers of a whole model by rules."""

import keras

from keras_compress import matching


def convert(model, rules):
    """Returns a copy of a model in which chosen layers are replaced; all other weights carry over.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        rules: Dict from a key to a function `layer -> new layer`. A key is a layer name, a glob, a
            layer class or a predicate `layer -> bool`; the first key that matches a layer counts.
            The new layer must take the same inputs and give outputs of a shape that the rest of
            the model accepts; `from_layer` of every compressed layer makes such a one.

    Returns:
        A new model of the same class of graph, compiled like `model` if that is compiled.

    Raises:
        ValueError: if the model has no graph or is not built, a key matches no layer, or a rule
            does not give a layer.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((64,)),
    ...     keras.layers.Dense(64, activation="relu", name="fc1"),
    ...     keras.layers.Dense(10, name="logits"),
    ... ])
    >>> small = kc.convert(
    ...     model, {"fc*": lambda layer: kc.layers.TTDense.from_layer(layer, rank=4)}
    ... )
    >>> [type(layer).__name__ for layer in small.layers]
    ['TTDense', 'Dense']
    """
    check_graph(model, "convert")
    if not rules:
        raise ValueError("convert: `rules` is empty; give at least one {key: layer -> new layer}.")
    layers = matching.leaf_layers(model)
    replacements = {}
    for layer, key in matching.resolve(rules, layers):
        new = rules[key](layer)
        if not isinstance(new, keras.layers.Layer):
            raise ValueError(
                f"convert: the rule for {matching.describe(key)} must give a Keras layer; for "
                f"'{layer.name}' it gave {type(new).__name__}."
            )
        replacements[id(layer)] = new
    return rebuild(model, replacements)


def rebuild(model, replacements, configure=None):
    """Copies a model with some layers replaced.

    Args:
        model: A built Sequential or functional model.
        replacements: Dict from `id(layer)` to the layer that takes its place. A layer replaced by
            itself is copied like the others, so that the two models share no weights.
        configure: Function `(layer, config) -> config` that may change what a copied layer is made
            from, as long as its variables stay; or `None`.

    Returns:
        The new model, with the values of all variables that were not replaced.
    """
    copies = []

    def clone(layer):
        new = replacements.get(id(layer), layer)
        if new is layer:
            config = layer.get_config()
            is_layer = isinstance(layer, keras.layers.Layer)
            if configure is not None and is_layer:
                config = configure(layer, config)
            new = new_like(layer, config)
            # The graph also has nodes that are plain operations (x + y) and hold no variables.
            if is_layer:
                copies.append((layer, new))
        return new

    new_model = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for old, new in copies:
        for source, target in zip(old.variables, new.variables, strict=True):
            # By value: JAX would let both models share, and a training step free, one buffer.
            target.assign(keras.ops.convert_to_numpy(source))
    return new_model


def new_like(layer, config):
    """A new layer (or operation) of the class of `layer`, made from a configuration."""
    if not isinstance(layer, keras.layers.Lambda):
        return type(layer).from_config(config)
    # Keras takes a Python lambda for untrusted code, but this one is here already.
    return type(layer)(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=layer.arguments,
        name=config["name"],
        dtype=config["dtype"],
        trainable=config["trainable"],
    )


def check_graph(model, caller):
    """Raises `ValueError` unless `model` is a built Sequential or functional model.

    Args:
        model: Anything.
        caller: Name of the function that the error speaks for.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"{caller} takes a keras.Model; got {type(model).__name__}.")
    # A functional model keeps the graph of its operations; a subclassed one only runs code.
    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        raise ValueError(
            f"{caller}: model '{model.name}' is subclassed: there is no graph to walk. Build it "
            "from keras.Input with the functional API, or replace the layers in its constructor."
        )
    if not model.built:
        raise ValueError(
            f"{caller}: model '{model.name}' is not built; give it a keras.Input or call it first."
        )
