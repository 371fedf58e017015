"""Values of variables, read from tf_keras layers and set in Keras 3 ones."""


def depth_first(layer):
    """A tf_keras layer's variables in the order of Keras 3: its own, then those of its parts.

    `layer.weights` has them in another order where `trainable` is switched off for some.
    """
    found, seen = [], set()

    def visit(part):
        for variable in [*part._trainable_weights, *part._non_trainable_weights]:
            # The vocabulary of a lookup layer stands there, too.
            if id(variable) not in seen and hasattr(variable, "numpy"):
                seen.add(id(variable))
                found.append(variable)
        for inner in part._flatten_layers(recursive=False, include_self=False):
            # In tf_keras a metric is a layer, too.
            if not (hasattr(inner, "update_state") and hasattr(inner, "result")):
                visit(inner)

    visit(layer)
    return found


def of(layer):
    """List of `(name, array)` of a tf_keras layer's variables."""
    if type(layer).__name__ == "MultiHeadAttention" and layer.built:
        # tfmot leaves tensors in the place of its kernels, even after stripping.
        return [
            (f"{part.name}/{attribute}", value.numpy())
            for part in (
                layer._query_dense,
                layer._key_dense,
                layer._value_dense,
                layer._output_dense,
            )
            for attribute in ("kernel", "bias")
            if (value := getattr(part, attribute, None)) is not None
        ]
    return [(variable.name, variable.numpy()) for variable in depth_first(layer)]


def assign(layer, arrays):
    """Sets the weights of a Keras 3 layer.

    By name, where names tell them apart and are the same in both; else in order.

    Args:
        layer: A built layer of Keras 3.
        arrays: List of `(name, array)`.

    Raises:
        ValueError: if number or shapes do not fit.
    """
    # The state of a stateful RNN is a weight in Keras 3 only.
    weights = [weight for weight in layer.weights if weight.name != "rnn_state"]
    targets = [weight.name for weight in weights]
    names = [name.split(":")[0].split("/")[-1] for name, _ in arrays]
    by_name = dict(zip(names, (array for _, array in arrays), strict=True))
    if len(by_name) == len(names) and set(names) == set(targets) and len(targets) == len(names):
        values = [by_name[name] for name in targets]
    else:
        values = [array for _, array in arrays]
    want = [tuple(weight.shape) for weight in weights]
    got = [tuple(array.shape) for array in values]
    if want != got:
        raise ValueError(
            f"from_tf_keras: layer '{layer.name}' has weights of the shapes {got} in tf_keras, but "
            f"{type(layer).__name__} has {want} in Keras 3. A class in `custom_objects` must make "
            "the same weights in the same order as the tf_keras one."
        )
    for weight, value in zip(weights, values, strict=True):
        weight.assign(value)
