"""ShuffleNet: grouped 1x1 convolutions with channel shuffles."""

import keras

from keras_compress import validation
from keras_compress.layers import ShuffleUnit
from keras_compress.models.images import conv, image_input, norm, pooled_classes

#: Filters of stage 2 for each number of groups; the next stages have twice as many each.
_FILTERS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_REPEATS = (4, 8, 4)


def ShuffleNet(
    input_shape=(224, 224, 3),
    classes=1000,
    groups=3,
    scale=1.0,
    classifier_activation="softmax",
    name="shufflenet",
):
    """ShuffleNet (the first), about 137 M multiply-accumulates with 3 groups at 224x224.

    The more groups, the wider at equal cost. The first 1x1 convolution of stage 2 has no groups. Of
    stock layers and `kc.layers.ChannelShuffle`: `conv1`, `stage2_unit1_compress`, ...,
    `predictions`.

    Args:
        input_shape: Shape of an image; height and width may be `None`.
        classes: Number of classes.
        groups: 1, 2, 3, 4 or 8.
        scale: Width: each number of filters times `scale`, rounded to what the groups divide.
        classifier_activation: Of the last layer; `None` for logits.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
        Mobile Devices", 2018.

    Example:

    >>> ShuffleNet((32, 32, 1), classes=10, groups=2, scale=0.25).output_shape
    (None, 10)
    """
    owner = "ShuffleNet"
    inputs = image_input(input_shape, owner)
    validation.one_of("groups", groups, _FILTERS, owner)
    scale = validation.number("scale", scale, 0, low_open=True, owner=owner)
    # What groups divide: all filters, a quarter of them, and what stage 2 adds to conv1.
    filters = _rounded(_FILTERS[groups] * scale, 4 * groups)
    stem = _rounded(24 * scale, groups)
    x = norm("conv1_norm")(conv(stem, 3, 2, name="conv1")(inputs))
    x = keras.layers.Activation("relu", name="conv1_act")(x)
    x = keras.layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x)
    for stage, repeats in enumerate(_REPEATS, start=2):
        for number in range(1, repeats + 1):
            x = ShuffleUnit(
                filters * 2 ** (stage - 2),
                groups,
                strides=2 if number == 1 else 1,
                group_first=(stage, number) != (2, 1),
                name=f"stage{stage}_unit{number}",
            ).functional(x)
    outputs = pooled_classes(x, classes, classifier_activation, owner)
    return keras.Model(inputs, outputs, name=name)


def _rounded(number, step):
    """The nearest multiple of `step` above 0."""
    return max(1, round(number / step)) * step
