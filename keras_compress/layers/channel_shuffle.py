"""ChannelShuffle: lets every group of the next grouped convolution read every group of the last."""

import keras
from keras import ops

from keras_compress import validation


@keras.saving.register_keras_serializable(package="keras_compress")
class ChannelShuffle(keras.layers.Layer):
    """Interleaves the channels of `groups` equal groups: channel `(g, i)` comes to `(i, g)`.

    Shuffling by `groups` and then by `channels / groups` is the identity. Channel pruning knows the
    layer (the groups stay equal in size); in a .tflite it is RESHAPE, TRANSPOSE, RESHAPE, bound by
    memory.

    Args:
        groups: Number of groups.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        **kwargs: `name`, `dtype`, as in Keras.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)`.

    Output shape:
        As the input.

    Raises:
        ValueError: if `groups` is no positive integer, or does not divide the channels.

    Reference:
        Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
        Mobile Devices", 2018.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> shuffle = kc.layers.ChannelShuffle(2)
    >>> np.asarray(shuffle(np.arange(6.0).reshape(1, 1, 1, 6))).ravel().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """

    def __init__(self, groups, data_format=None, **kwargs):
        super().__init__(**kwargs)
        self.groups = validation.positive_int("groups", groups, self)
        self.data_format = validation.one_of(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
            self,
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def build(self, input_shape):
        check_groups("groups", self.groups, self, input=input_shape[self._axis])

    def call(self, inputs):
        axis = self._axis % len(inputs.shape)
        sizes = list(inputs.shape)
        # Open sizes are read at run time; an open batch alone needs none of that.
        if None in sizes[1:]:
            sizes = list(ops.shape(inputs))
        else:
            sizes[0] = -1
        each = inputs.shape[axis] // self.groups
        grouped = ops.reshape(inputs, (*sizes[:axis], self.groups, each, *sizes[axis + 1 :]))
        order = list(range(len(sizes) + 1))
        order[axis], order[axis + 1] = axis + 1, axis
        shuffled = ops.transpose(grouped, order)
        return ops.reshape(shuffled, (*sizes[:axis], inputs.shape[axis], *sizes[axis + 1 :]))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    @property
    def _axis(self):
        return 1 if self.data_format == "channels_first" else -1

    def get_config(self):
        return {**super().get_config(), "groups": self.groups, "data_format": self.data_format}


def check_groups(name, groups, owner, **channels):
    """Raises `ValueError` unless `groups` divides every number of channels.

    Args:
        name: Name of the argument.
        groups: Its value.
        owner: Object or name that the error speaks of.
        **channels: What each number is of -> the number; `None` where it is open.
    """
    for what, number in channels.items():
        if number is None or number % groups:
            divisors = [n for n in range(1, (number or 0) + 1) if number % n == 0]
            near = sorted(divisors, key=lambda n: abs(n - groups))[:4]
            remedy = f" {number} can be divided by {', '.join(map(str, sorted(near)))}."
            raise ValueError(
                f"{validation.prefix(owner)}`{name}` must divide the number of {what} channels; "
                f"got {name}={groups} with {number} {what} channels.{remedy if near else ''}"
            )
