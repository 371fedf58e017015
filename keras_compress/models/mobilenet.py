"""MobileNet: depthwise separable convolutions."""

import keras

from keras_compress import validation
from keras_compress.layers import DepthwiseSeparableConv2D
from keras_compress.models.images import conv, dense_classes, image_input, norm

#: (filters, strides) of the thirteen blocks.
_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


def MobileNet(
    input_shape=(224, 224, 3),
    classes=1000,
    alpha=1.0,
    dropout=1e-3,
    classifier_activation="softmax",
    name="mobilenet",
):
    """MobileNet (the first): a width multiplier `alpha`, and a resolution that is the input's.

    With `alpha` 1, 224x224 images and 1000 classes 4.2 M weights and 569 M multiply-accumulates.
    The network of `keras.applications.MobileNet` (ReLU6 included) with a dense layer for its last
    1x1 convolution, built from `kc.layers.DepthwiseSeparableConv2D` for any size; for pretrained
    weights take that one. Of stock layers: `conv1`, `block1_depthwise`, ..., `predictions`.

    Args:
        input_shape: Shape of an image; height and width may be `None`.
        classes: Number of classes.
        alpha: Width: each number of filters times `alpha`, rounded down.
        dropout: Rate before the last layer.
        classifier_activation: Of the last layer; `None` for logits.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
        Applications", 2017.

    Example:

    >>> MobileNet((32, 32, 1), classes=10, alpha=0.25).count_params()
    220970
    """
    owner = "MobileNet"
    inputs = image_input(input_shape, owner)
    # The narrowest layer, of 32 filters, keeps at least one.
    alpha = validation.number("alpha", alpha, 1 / 32, owner=owner)
    dropout = validation.number("dropout", dropout, 0, 1, high_open=True, owner=owner)
    x = norm("conv1_norm")(conv(int(32 * alpha), 3, 2, name="conv1")(inputs))
    x = keras.layers.Activation("relu6", name="conv1_act")(x)
    for number, (filters, strides) in enumerate(_BLOCKS, start=1):
        x = DepthwiseSeparableConv2D(
            int(filters * alpha), 3, strides, activation="relu6", name=f"block{number}"
        ).functional(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, dense_classes(x, classes, classifier_activation, owner), name=name)
