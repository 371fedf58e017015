"""Feature maps of two sides, where a loss needs spatial axes."""

from keras_compress import validation


def check_maps(loss, what, teacher_shape, student_shape):
    """Raises `ValueError` for features without maps, or with maps that cannot be resized.

    Args:
        loss: A `FeatureLoss`.
        what: What it makes of the maps, in the plural, for the error's text.
        teacher_shape: Shape of the teacher's features, batch axis first.
        student_shape: Shape of the student's.
    """
    rank = len(teacher_shape)
    resizable = rank == 4 or tuple(teacher_shape[1:-1]) == tuple(student_shape[1:-1])
    if rank < 3 or rank != len(student_shape) or not resizable:
        raise ValueError(
            f"{validation.prefix(loss)}{what} need features (batch, ..., channels) with as many "
            "axes on both sides, and equal sizes unless they are images; got "
            f"{tuple(teacher_shape)} from teacher layer {loss.teacher_layer_name!r} and "
            f"{tuple(student_shape)} from student layer {loss.student_layer_name!r}."
        )
