"""LeNet-300-100 and LeNet-5: the networks that pruning papers measure on digits."""

import keras

from keras_compress import validation
from keras_compress.models.images import dense_classes, image_input


def LeNet300100(
    input_shape=(28, 28, 1),
    classes=10,
    classifier_activation="softmax",
    name="lenet_300_100",
):
    """Two hidden layers of 300 and 100 units, ReLU.

    266,610 weights for 28x28 digits. Layers: `flatten`, `fc1`, `fc2`, `predictions`.

    Args:
        input_shape: Shape of an image, of fixed size.
        classes: Number of classes.
        classifier_activation: Of the last layer; `None` for logits.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: if the shape is not that of an image of fixed size, or there is no class.

    Reference:
        LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
        1998.

    Example:

    >>> LeNet300100().count_params()
    266610
    """
    inputs = image_input(input_shape, "LeNet300100")
    _check_fixed(inputs, "LeNet300100")
    x = keras.layers.Flatten(name="flatten")(inputs)
    x = keras.layers.Dense(300, activation="relu", name="fc1")(x)
    x = keras.layers.Dense(100, activation="relu", name="fc2")(x)
    outputs = dense_classes(x, classes, classifier_activation, "LeNet300100")
    return keras.Model(inputs, outputs, name=name)


def LeNet5(
    input_shape=(28, 28, 1),
    classes=10,
    padding="valid",
    classifier_activation="softmax",
    name="lenet_5",
):
    """Two 5x5 convolutions with 20 and 50 filters, max pooling, a hidden layer of 500 units.

    The form that comes with Caffe and that compression papers mean by LeNet-5: 431,080 weights for
    28x28 digits. Layers: `conv1`, `pool1`, `conv2`, `pool2`, `flatten`, `fc1`, `predictions`.

    Args:
        input_shape: Shape of an image, of fixed size; at least 16x16 with padding `"valid"`.
        classes: Number of classes.
        padding: `"valid"` or `"same"`, of the convolutions and the pooling.
        classifier_activation: Of the last layer; `None` for logits.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: if the shape is not that of an image of fixed size, it is too small, or there is
            no class.

    Reference:
        LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
        1998.

    Example:

    >>> LeNet5().count_params()
    431080
    """
    inputs = image_input(input_shape, "LeNet5")
    _check_fixed(inputs, "LeNet5")
    validation.one_of("padding", padding, ("valid", "same"), "LeNet5")
    if padding == "valid" and min(_sizes(inputs)) < 16:
        raise ValueError(
            "LeNet5: `input_shape` must be at least 16x16 with padding='valid', or nothing is left "
            f"after two convolutions; got input_shape={tuple(input_shape)}. Take padding='same'."
        )
    x = inputs
    for number, filters in enumerate((20, 50), start=1):
        x = keras.layers.Conv2D(
            filters, 5, padding=padding, activation="relu", name=f"conv{number}"
        )(x)
        x = keras.layers.MaxPooling2D(padding=padding, name=f"pool{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(500, activation="relu", name="fc1")(x)
    outputs = dense_classes(x, classes, classifier_activation, "LeNet5")
    return keras.Model(inputs, outputs, name=name)


def _sizes(inputs):
    first = keras.config.image_data_format() == "channels_first"
    return inputs.shape[2:] if first else inputs.shape[1:3]


def _check_fixed(inputs, owner):
    if None in inputs.shape[1:]:
        raise ValueError(
            f"{owner}: a dense layer reads every pixel, so that `input_shape` must be fixed; got "
            f"input_shape={tuple(inputs.shape[1:])}. Give numbers, or take kc.models.ResNetCIFAR."
        )
