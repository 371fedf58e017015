"""ResNetCIFAR: the residual networks for small images."""

import keras

from keras_compress import validation
from keras_compress.layers import ResidualBlock
from keras_compress.models.images import conv, image_input, norm, pooled_classes


def ResNetCIFAR(
    input_shape=(32, 32, 3),
    classes=10,
    depth=20,
    shortcut="pad",
    classifier_activation="softmax",
    name=None,
):
    """Residual network of `depth = 6n + 2` layers: three stages of n blocks, 16, 32, 64 filters.

    0.27 M weights with 20 layers, 0.85 M with 56, 1.7 M with 110. Of stock layers: `conv1`,
    `stage1_block1_conv1`, ..., `predictions`.

    Args:
        input_shape: Shape of an image; height and width may be `None`.
        classes: Number of classes.
        depth: 8, 14, 20, 32, 44, 56, 110, ...
        shortcut: Where the shape changes, see `kc.layers.ResidualBlock`.
        classifier_activation: Of the last layer; `None` for logits.
        name: Name of the model; by default `"resnet_<depth>"`.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: if `depth` is not 6n + 2, or another argument is out of range.

    Reference:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016.

    Example:

    >>> ResNetCIFAR(depth=20).count_params()
    271098
    """
    owner = "ResNetCIFAR"
    inputs = image_input(input_shape, owner)
    depth = validation.positive_int("depth", depth, owner)
    if depth < 8 or depth % 6 != 2:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ValueError(
            "ResNetCIFAR: `depth` must be 6n + 2 (8, 14, 20, 32, 44, 56, 110): three stages of n "
            f"blocks of two layers; got depth={depth}. The nearest is {near}."
        )
    x = norm("conv1_norm")(conv(16, 3, name="conv1", kernel_initializer="he_normal")(inputs))
    x = keras.layers.Activation("relu", name="conv1_act")(x)
    for stage in range(1, 4):
        for number in range(1, (depth - 2) // 6 + 1):
            x = ResidualBlock(
                16 * 2 ** (stage - 1),
                strides=2 if stage > 1 and number == 1 else 1,
                shortcut=shortcut,
                name=f"stage{stage}_block{number}",
            ).functional(x)
    outputs = pooled_classes(x, classes, classifier_activation, owner)
    return keras.Model(inputs, outputs, name=name or f"resnet_{depth}")
