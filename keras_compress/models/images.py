"""What the image classifiers of this folder share: their input, their head, their arguments."""

import keras

from keras_compress import validation


def image_input(input_shape, owner):
    """The `keras.Input` of a classifier.

    Args:
        input_shape: `(height, width, channels)`, or channels first where that is Keras's setting;
            height and width may be `None`.
        owner: Name of the model that errors speak of.

    Raises:
        ValueError: if it is no such shape.
    """
    shape = tuple(input_shape) if hasattr(input_shape, "__iter__") else (input_shape,)
    first = keras.config.image_data_format() == "channels_first"
    order = "(channels, height, width)" if first else "(height, width, channels)"
    channels = shape[0 if first else -1] if shape else None
    positive = all(size is None or (isinstance(size, int) and size > 0) for size in shape)
    if len(shape) != 3 or not positive or channels is None:
        raise ValueError(
            f"{owner}: `input_shape` must be {order}, without the batch axis, positive integers; "
            "height and width may be None for any size; got "
            f"input_shape={input_shape!r}. Grey images have one channel: {(28, 28, 1)}."
        )
    return keras.Input(shape)


def channel_axis():
    """Axis of the channels in Keras's data format."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def conv(filters, kernel_size, strides=1, name=None, **kwargs):
    """A `Conv2D`, padded to `"same"` size and without bias unless said otherwise."""
    options = {"padding": "same", "use_bias": False, **kwargs}
    return keras.layers.Conv2D(filters, kernel_size, strides, name=name, **options)


def norm(name):
    """A `BatchNormalization` over the channels."""
    return keras.layers.BatchNormalization(axis=channel_axis(), name=name)


def pooled_classes(x, classes, activation, owner):
    """Global average pooling and the dense layer of the classes."""
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return dense_classes(x, classes, activation, owner)


def dense_classes(x, classes, activation, owner):
    """The dense layer of the classes."""
    classes = validation.positive_int("classes", classes, owner)
    return keras.layers.Dense(classes, activation=activation, name="predictions")(x)
