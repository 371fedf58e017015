"""Which layers of teacher and student a distillation loss compares, and their outputs."""

import keras

from keras_compress import matching, validation


def layer_pairs(loss, teacher, student):
    """Names of the layers that a loss compares.

    Args:
        loss: A `keras.distillation.DistillationLoss`. Its `teacher_layer_name` and
            `student_layer_name`, if it has them, are layer names or globs.
        teacher: Model.
        student: Model.

    Returns:
        List of `(teacher layer name, student layer name)`; `None` stands for the model's output.
        Globs give one pair for each layer that they match, in the order of the models' layers.

    Raises:
        ValueError: if a name matches no layer, the two globs match different numbers of layers, or
            a model has no graph to take a layer's output from.
    """
    names = {}
    for side, model in (("teacher", teacher), ("student", student)):
        key = getattr(loss, f"{side}_layer_name", None)
        names[side] = [None] if key is None else _resolve(loss, f"{side}_layer_name", key, model)
    if len(names["teacher"]) != len(names["student"]):
        raise ValueError(
            f"{validation.prefix(loss)}teacher_layer_name={loss.teacher_layer_name!r} matches "
            f"{names['teacher']}, student_layer_name={loss.student_layer_name!r} matches "
            f"{names['student']}; both must match equally many layers, which are paired in order."
        )
    return list(zip(names["teacher"], names["student"], strict=True))


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
