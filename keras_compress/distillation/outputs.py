"""Checks of what the models of a distillation give."""

from keras_compress import validation
from keras_compress.distillation.logits_distillation import output_activations


def check_logits(owner, **models):
    """Checks that models give logits of the same classes.

    Args:
        owner: What errors speak for.
        **models: The models, by the names of their arguments.

    Returns:
        The number of classes.

    Raises:
        ValueError: if a model has no graph or several outputs, ends in a softmax or a sigmoid, or
            has other classes than the first.
    """
    shapes = {}
    for side, model in models.items():
        outputs = getattr(model, "outputs", None) or ()
        shapes[side] = [tuple(tensor.shape) for tensor in outputs]
        if len(shapes[side]) != 1 or len(shapes[side][0]) != 2:
            raise ValueError(
                f"{validation.prefix(owner)}`{side}` must be a built Sequential or functional "
                f"model with one output (batch, classes); got outputs {shapes[side] or None} of "
                f"{model!r}."
            )
        kinds = {"softmax", "sigmoid"}.intersection(output_activations(model))
        if kinds:
            raise ValueError(
                f"{validation.prefix(owner)}{side} '{model.name}' must give logits, but its last "
                f"activation is {kinds.pop()}. Take it off and use a loss with from_logits=True."
            )
    classes = {side: shape[0][-1] for side, shape in shapes.items()}
    if len(set(classes.values())) > 1:
        text = " and ".join(f"{side}: {count}" for side, count in classes.items())
        raise ValueError(
            f"{validation.prefix(owner)}the models must have the same classes; got {text}."
        )
    return next(iter(classes.values()))
