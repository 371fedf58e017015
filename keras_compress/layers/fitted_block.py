"""What blocks need of the trained convolution that they start from."""

import keras
import numpy as np
from keras import ops


def check_source(cls, layer, sizes=None):
    """Raises `ValueError` unless `layer` is a built Conv2D that a block of class `cls` can fit.

    Args:
        cls: Class of the block.
        layer: Anything.
        sizes: Kernel sizes that are allowed; `None` for all.
    """
    check_conv2d(cls, layer)
    wrong = unfit(layer, sizes)
    if wrong:
        raise ValueError(
            f"{cls.__name__}.from_layer(): '{layer.name}' has {wrong}. Leave the layer as it is."
        )


def check_conv2d(cls, layer):
    """Raises `ValueError` unless `layer` is a built Conv2D.

    Args:
        cls: Class of the block that starts from it.
        layer: Anything.
    """
    if type(layer) is not keras.layers.Conv2D:
        raise ValueError(
            f"{cls.__name__}.from_layer() starts from a keras.layers.Conv2D; got "
            f"{type(layer).__name__} '{getattr(layer, 'name', layer)}'."
        )
    if not layer.built:
        raise ValueError(
            f"{cls.__name__}.from_layer() needs a built layer: call Conv2D '{layer.name}' on an "
            "input, or its build(), first."
        )


def unfit(layer, sizes=None):
    """Why no block can take the place of a Conv2D, or `None`."""
    if layer.groups > 1:
        return f"groups={layer.groups}; blocks take the place of convolutions of one group"
    if max(layer.dilation_rate) > 1:
        return f"dilation_rate={tuple(layer.dilation_rate)}; blocks are not dilated"
    if layer.strides[0] != layer.strides[1]:
        return f"strides={tuple(layer.strides)}; depthwise convolutions take equal strides"
    if sizes is not None and tuple(layer.kernel_size) not in sizes:
        allowed = " or ".join(f"{h}x{w}" for h, w in sizes)
        return f"kernel_size={tuple(layer.kernel_size)}; this block stands for {allowed}"
    return None


def kernel_and_bias(layer):
    """Kernel and bias of a convolution, in float64; zeros where it has no bias."""
    kernel = ops.convert_to_numpy(ops.cast(layer.kernel, "float32")).astype("float64")
    if not layer.use_bias:
        return kernel, np.zeros(kernel.shape[-1])
    return kernel, ops.convert_to_numpy(ops.cast(layer.bias, "float32")).astype("float64")


def carried(layer):
    """Arguments that a convolution hands on to the block in its place."""
    config = layer.get_config()
    names = ("name", "trainable", "dtype", "activation", "strides", "padding", "data_format")
    return {name: config[name] for name in names}


def image_shape(layer):
    """Shape of the input of a convolution, with open sizes."""
    channels = layer.kernel.shape[2] * layer.groups
    if layer.data_format == "channels_last":
        return (None, None, None, channels)
    return (None, channels, None, None)


def targets_for(kernel, bias, patches, responses):
    """What is to be given for patches: `responses`, or what the kernel and the bias give."""
    if responses is not None:
        return responses
    return patches @ kernel.reshape(patches.shape[1], -1) + bias
