"""Which layers of teacher and student a distillation loss compares, and their outputs."""

import keras

from keras_compress import matching, validation


def layer_pairs(loss, teacher, student):
    """Names of the layers that a loss compares.

    Args:
        loss: A `keras.distillation.DistillationLoss`. Its `teacher_layer_name` and
            `student_layer_name`, if it has them, are layer names or globs, or tuples of them.
        teacher: Model.
        student: Model.

    Returns:
        List of `(teacher layer name, student layer name)`; `None` stands for the model's output,
        and a tuple of names for several layers at once. Globs give one pair for each layer that
        they match, in the order of the models' layers.

    Raises:
        ValueError: if a name matches no layer, the two globs match different numbers of layers, or
            a model has no graph to take a layer's output from.
    """
    names = {}
    for side, model in (("teacher", teacher), ("student", student)):
        key = getattr(loss, f"{side}_layer_name", None)
        names[side] = _resolve_all(loss, f"{side}_layer_name", key, model)
    if len(names["teacher"]) != len(names["student"]):
        raise ValueError(
            f"{validation.prefix(loss)}teacher_layer_name={loss.teacher_layer_name!r} matches "
            f"{names['teacher']}, student_layer_name={loss.student_layer_name!r} matches "
            f"{names['student']}; both must match equally many layers, which are paired in order."
        )
    return list(zip(names["teacher"], names["student"], strict=True))


def _resolve_all(loss, argument, key, model):
    if not isinstance(key, tuple):
        return [None] if key is None else _resolve(loss, argument, key, model)
    parts = [_resolve_all(loss, argument, part, model) for part in key]
    if len({len(part) for part in parts}) > 1:
        raise ValueError(
            f"{validation.prefix(loss)}{argument}={key!r} matches {parts}; all parts must match "
            "equally many layers, which are put together in order."
        )
    return list(zip(*parts, strict=True))


def _resolve(loss, argument, key, model):
    where = f"{validation.prefix(loss)}{argument}={key!r}, model '{model.name}': "
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"{where}the model is subclassed, so there is no graph to take a layer's output from. "
            "Use a Sequential or functional model, or losses on the models' outputs only."
        )
    try:
        return [layer.name for layer, _ in matching.resolve([key], model.layers)]
    except ValueError as error:
        nested = [
            layer.name
            for layer in model.layers
            if isinstance(layer, keras.Model)
            and any(matching.matches(key, leaf) for leaf in matching.leaf_layers(layer))
        ]
        hint = (
            f" It lies inside {nested[0]!r}: only that model's output can be had." if nested else ""
        )
        raise ValueError(f"{where}{error}{hint}") from None


def layer_outputs(model):
    """Symbolic outputs of the layers of a model, in the graph that the model runs.

    `layer.output` may be another tensor: a Sequential model that grows layer by layer (as loading
    it does) calls its layers anew each time, and a model made of such tensors would run them
    several times.

    Args:
        model: A Sequential or functional model.

    Returns:
        Dict from `id(layer)` to a list of its outputs, one for each place where the model calls it.
    """
    found, seen, pending = {}, set(), list(model.outputs)
    while pending:
        operation, index, _ = pending.pop()._keras_history
        if (id(operation), index) not in seen:
            seen.add((id(operation), index))
            node = operation._inbound_nodes[index]
            outputs = node.output_tensors
            outputs = outputs[0] if len(outputs) == 1 else outputs
            found.setdefault(id(operation), []).append(outputs)
            pending.extend(node.input_tensors)
    return found


def extractor(model, layer_names):
    """A model that gives the outputs of layers besides the model's own.

    Args:
        model: A Sequential or functional model.
        layer_names: Names of layers.

    Returns:
        A model whose output is a dict from names to outputs; `"final_output"` is the model's.

    Raises:
        ValueError: if a layer is called several times.
    """
    tensors = layer_outputs(model)
    sequential = isinstance(model, keras.Sequential)
    outputs = {"final_output": model.outputs[0] if sequential else model.output}
    for name in layer_names:
        found = tensors[id(model.get_layer(name))]
        if len(found) > 1:
            raise ValueError(
                f"Distiller: layer '{name}' of '{model.name}' runs {len(found)} times a step, "
                "so that its output is ambiguous; choose another one."
            )
        outputs[name] = found[0]
    return keras.Model(
        model.inputs[0] if sequential else model.input,
        outputs,
        name=f"{model.name}_multi_feature_extractor",
    )


def layers_above(model, layer_names):
    """Layers of a model that the outputs of some of its layers do not depend on.

    Args:
        model: A Sequential or functional model.
        layer_names: Names of layers.

    Returns:
        List of layers without models: of a nested model, all of its layers.
    """
    found = layer_outputs(model)
    below = set()
    pending = [t for name in layer_names for t in found[id(model.get_layer(name))]]
    pending = keras.tree.flatten(pending)
    while pending:
        operation, index, _ = pending.pop()._keras_history
        if (id(operation), index) not in below:
            below.add((id(operation), index))
            pending.extend(operation._inbound_nodes[index].input_tensors)
    needed = {operation for operation, _ in below}
    above = [layer for layer in model.layers if id(layer) not in needed]
    return [
        leaf
        for layer in above
        for leaf in (matching.leaf_layers(layer) if isinstance(layer, keras.Model) else [layer])
    ]
