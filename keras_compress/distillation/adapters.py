"""Adapters: layers that bring a student's features to the teacher's shape."""

import math

import keras

from keras_compress import validation

KINDS = ("auto", "regressor", "conv1x1", "dense", "resize", None)


def check_adapter(adapter, owner):
    """Returns `adapter` if `make_adapter` takes it, else raises `ValueError`."""
    if isinstance(adapter, str) or adapter is None or not callable(adapter):
        validation.one_of("adapter", adapter, KINDS, owner=owner)
    return adapter


def make_adapter(loss, teacher_shape, student_shape):
    """Makes the adapter of one pair of layers.

    Args:
        loss: A `FeatureLoss`, with `adapter`.
        teacher_shape: Shape of the teacher's features, batch axis first.
        student_shape: Shape of the student's.

    Returns:
        A built layer, or `None` if none is needed.

    Raises:
        ValueError: if no adapter of the kind asked for leads from one shape to the other.
    """
    kind, layer = loss.adapter, None
    if isinstance(kind, keras.layers.Layer):
        layer = type(kind).from_config(kind.get_config())
    elif callable(kind):
        layer = keras.layers.Lambda(kind)
    elif kind == "regressor" or (kind == "auto" and not compatible(teacher_shape, student_shape)):
        layer = _regressor(loss, teacher_shape, student_shape)
    elif kind == "conv1x1":
        layer = _conv1x1(loss, teacher_shape, student_shape)
    elif kind == "dense":
        layer = _dense(loss, teacher_shape, student_shape)
    elif kind == "resize":
        layer = _resize(loss, teacher_shape, student_shape)
    if layer is not None:
        layer.build(student_shape)
    return layer


def compatible(a, b):
    """Whether two shapes are equal as far as they are known."""
    return len(a) == len(b) and all(m == n or None in (m, n) for m, n in zip(a, b, strict=True))


def _regressor(loss, teacher_shape, student_shape):
    channels = teacher_shape[-1]
    inner = list(zip(teacher_shape[1:-1], student_shape[1:-1], strict=False))
    if len(teacher_shape) == len(student_shape):
        if all(t == s or None in (t, s) for t, s in inner):
            return keras.layers.Dense(channels)
        if len(inner) <= 3 and all(None not in (t, s) and s >= t for t, s in inner):
            convolution = getattr(keras.layers, f"Conv{len(inner)}D")
            kernel_size = tuple(s - t + 1 for t, s in inner)
            return convolution(channels, kernel_size, data_format="channels_last")
    raise _refusal(
        loss,
        "no regressor leads",
        teacher_shape,
        student_shape,
        "the student's map must have as many axes and be at least as large. Choose other layers, "
        "adapter='resize' or 'dense', or give a layer as `adapter`.",
    )


def _conv1x1(loss, teacher_shape, student_shape):
    if len(teacher_shape) < 3 or not compatible(teacher_shape[:-1], student_shape[:-1]):
        raise _refusal(
            loss,
            "no 1x1 convolution leads",
            teacher_shape,
            student_shape,
            "maps must have the same size. Use adapter='resize', or 'regressor' for a larger map.",
        )
    # The same thing, of any rank.
    return keras.layers.Dense(teacher_shape[-1])


def _dense(loss, teacher_shape, student_shape):
    if None in teacher_shape[1:] or None in student_shape[1:]:
        raise _refusal(
            loss,
            "no dense layer leads",
            teacher_shape,
            student_shape,
            "it takes all features of a sample, whose sizes must be known. Use adapter='conv1x1'.",
        )
    layers = [keras.layers.Dense(math.prod(teacher_shape[1:]))]
    if len(student_shape) > 2:
        layers.insert(0, keras.layers.Flatten(data_format="channels_last"))
    if len(teacher_shape) > 2:
        layers.append(keras.layers.Reshape(teacher_shape[1:]))
    return layers[0] if len(layers) == 1 else keras.Sequential(layers, name="dense_adapter")


def _resize(loss, teacher_shape, student_shape):
    if len(teacher_shape) != 4 or len(student_shape) != 4 or None in teacher_shape[1:]:
        raise _refusal(
            loss,
            "no resizing leads",
            teacher_shape,
            student_shape,
            "both must be images (batch, height, width, channels), the teacher's of known size.",
        )
    _, height, width, channels = teacher_shape
    resizing = keras.layers.Resizing(height, width, data_format="channels_last")
    if channels == student_shape[-1]:
        return resizing
    return keras.Sequential([resizing, keras.layers.Dense(channels)], name="resize_adapter")


def _refusal(loss, what, teacher_shape, student_shape, reason):
    return ValueError(
        f"{validation.prefix(loss)}{what} from student layer {loss.student_layer_name!r}, shape "
        f"{tuple(student_shape)}, to teacher layer {loss.teacher_layer_name!r}, shape "
        f"{tuple(teacher_shape)}: {reason}"
    )
