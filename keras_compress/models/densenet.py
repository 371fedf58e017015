"""DenseNetCIFAR: densely connected networks for small images."""

import keras

from keras_compress import validation
from keras_compress.layers import DenseBlock
from keras_compress.models.images import channel_axis, conv, image_input, norm, pooled_classes


def DenseNetCIFAR(
    input_shape=(32, 32, 3),
    classes=10,
    depth=40,
    growth_rate=12,
    bottleneck=False,
    compression=1.0,
    dropout=0.0,
    classifier_activation="softmax",
    name=None,
):
    """DenseNet of three blocks: 1.0 M weights with 40 layers that add 12 maps each.

    DenseNet-BC is `bottleneck=True, compression=0.5`: 0.8 M weights with 100 layers. Of stock
    layers: `conv1`, `block1_1_norm`, `block1_1_act`, `block1_1_conv`, ..., `transition1_conv`, ...,
    `predictions`.

    Args:
        input_shape: Shape of an image; height and width may be `None`.
        classes: Number of classes.
        depth: 3n + 4; with `bottleneck` 6n + 4.
        growth_rate: Maps that each layer adds.
        bottleneck: See `kc.layers.DenseBlock`.
        compression: Share of the maps that a transition keeps, in (0, 1].
        dropout: Rate after each convolution (0.2 in the paper without augmentation).
        classifier_activation: Of the last layer; `None` for logits.
        name: Name of the model; by default `"densenet_<depth>"`.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: if `depth` does not make three equal blocks, or another argument is out of
            range.

    Reference:
        Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", 2017.

    Example:

    >>> DenseNetCIFAR(depth=13, growth_rate=4).output_shape
    (None, 10)
    """
    owner = "DenseNetCIFAR"
    inputs = image_input(input_shape, owner)
    depth = validation.positive_int("depth", depth, owner)
    growth_rate = validation.positive_int("growth_rate", growth_rate, owner)
    compression = validation.number("compression", compression, 0, 1, low_open=True, owner=owner)
    step = 6 if bottleneck else 3
    if depth <= 4 or (depth - 4) % step:
        near = step * max(1, round((depth - 4) / step)) + 4
        raise ValueError(
            f"DenseNetCIFAR: `depth` must be {step}n + 4, for three blocks of n layers"
            f"{' of two convolutions' if bottleneck else ''}; got depth={depth}, "
            f"bottleneck={bottleneck}. The nearest is {near}."
        )
    compressed = bottleneck and compression < 1
    stem = 2 * growth_rate if compressed else 16
    x = conv(stem, 3, name="conv1", kernel_initializer="he_normal")(inputs)
    for number in range(1, 4):
        x = DenseBlock(
            (depth - 4) // step,
            growth_rate,
            bottleneck,
            dropout=dropout,
            name=f"block{number}",
        ).functional(x)
        part = "final" if number == 3 else f"transition{number}"
        x = keras.layers.Activation("relu", name=f"{part}_act")(norm(f"{part}_norm")(x))
        if number < 3:
            kept = max(1, int(x.shape[channel_axis()] * compression))
            x = conv(kept, 1, name=f"{part}_conv", kernel_initializer="he_normal")(x)
            x = keras.layers.AveragePooling2D(2, padding="same", name=f"{part}_pool")(x)
    outputs = pooled_classes(x, classes, classifier_activation, owner)
    return keras.Model(inputs, outputs, name=name or f"densenet_{depth}")
