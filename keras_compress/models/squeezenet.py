"""SqueezeNet: fire modules."""

import keras

from keras_compress import validation
from keras_compress.layers import FireModule
from keras_compress.models.images import conv, image_input

#: (squeeze, expand1x1 = expand3x3) of fire2 to fire9.
_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
#: Of each version: filters and kernel size of conv1, and the fires that a pooling comes after.
_VERSIONS = {"1.0": (96, 7, (4, 8)), "1.1": (64, 3, (3, 5))}


def SqueezeNet(
    input_shape=(224, 224, 3),
    classes=1000,
    version="1.0",
    bypass=None,
    dropout=0.5,
    classifier_activation="softmax",
    name="squeezenet",
):
    """SqueezeNet: AlexNet's accuracy with about a fiftieth of its weights.

    1,248,424 weights in version 1.0 with 1000 classes, 1,235,496 in 1.1, which costs 2.4 times
    fewer multiply-accumulates. Of stock layers: `conv1`, `fire2_squeeze1x1`, ..., `conv10`.

    Convolutions and pooling are padded to `"same"` size, so that any size works: for 224x224 the
    maps are 112, 56, 28, 14 wide, where the authors' (without padding) are 111, 55, 27, 13.

    Args:
        input_shape: Shape of an image; height and width may be `None`.
        classes: Number of classes.
        version: `"1.0"` (the paper's) or `"1.1"` (the authors' cheaper one).
        bypass: `None`; `"simple"`, which adds the input around fire 3, 5, 7 and 9; or `"complex"`,
            which adds a 1x1 convolution of it around the others too.
        dropout: Rate before the last convolution.
        classifier_activation: Of the last layer; `None` for logits.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, "SqueezeNet: AlexNet-level accuracy with
        50x fewer parameters and <0.5MB model size", 2016.

    Example:

    >>> SqueezeNet(version="1.1").count_params()
    1235496
    """
    owner = "SqueezeNet"
    inputs = image_input(input_shape, owner)
    classes = validation.positive_int("classes", classes, owner)
    validation.one_of("version", version, _VERSIONS, owner)
    validation.one_of("bypass", bypass, (None, "simple", "complex"), owner)
    dropout = validation.number("dropout", dropout, 0, 1, high_open=True, owner=owner)
    filters, size, pooled = _VERSIONS[version]
    biased = {"use_bias": True, "activation": "relu"}
    x = conv(filters, size, 2, name="conv1", **biased)(inputs)
    x = keras.layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x)
    for number, (squeeze, expand) in enumerate(_FIRES, start=2):
        y = FireModule(squeeze, expand, expand, name=f"fire{number}").functional(x)
        if bypass is not None and number % 2:
            y = keras.layers.Add(name=f"bypass{number}")([x, y])
        elif bypass == "complex":
            short = conv(2 * expand, 1, name=f"bypass{number}_conv", use_bias=True)(x)
            y = keras.layers.Add(name=f"bypass{number}")([short, y])
        x = y
        if number in pooled:
            x = keras.layers.MaxPooling2D(3, 2, padding="same", name=f"pool{number}")(x)
    x = keras.layers.Dropout(dropout, name="drop9")(x)
    x = conv(classes, 1, name="conv10", **biased)(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool10")(x)
    outputs = keras.layers.Activation(classifier_activation, name="predictions")(x)
    return keras.Model(inputs, outputs, name=name)
