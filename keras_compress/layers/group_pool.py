"""GroupPool: pooling over the orientations of group-equivariant feature maps."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.layers.plane_groups import check_orientations, plane_group, split_orientations


@keras.saving.register_keras_serializable(package="keras_compress")
class GroupPool(keras.layers.Layer):
    """Pools over the orientations that `P4Conv2D` or `P4MConv2D` gives each feature map.

    If the input of the network is rotated (or mirrored), what comes out is rotated likewise, and no
    channel changes its place. After a global pooling nothing changes at all.

    Args:
        group: `"p4"` (4 orientations) or `"p4m"` (8).
        mode: `"max"` or `"mean"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        **kwargs: `name`, `dtype`, as in Keras.

    Input shape:
        `(batch, ..., channels)`, or channels first; the orientations divide the channels.

    Output shape:
        `(batch, ..., channels / orientations)`, or channels first.

    Raises:
        ValueError: if an argument is not of these, or the orientations do not divide the channels.

    Reference:
        Cohen, Welling, "Group Equivariant Convolutional Networks", 2016.

    Example:

    >>> import keras
    >>> maps = keras.ops.reshape(keras.ops.arange(8.0), (1, 1, 1, 8))
    >>> pooled = GroupPool("p4", data_format="channels_last")(maps)
    >>> keras.ops.convert_to_numpy(pooled).ravel().tolist()
    [3.0, 7.0]
    """

    def __init__(self, group="p4", mode="max", data_format=None, **kwargs):
        super().__init__(**kwargs)
        self.group = plane_group(group, "GroupPool").name
        self.mode = validation.one_of("mode", mode, ("max", "mean"), self)
        self.data_format = validation.one_of(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
            self,
        )

    def compute_output_shape(self, input_shape):
        axis, group = self._axis(input_shape), plane_group(self.group)
        check_orientations(input_shape[axis], group, self)
        channels = input_shape[axis] // group.order
        return (*input_shape[:axis], channels, *input_shape[axis + 1 :])

    def call(self, inputs):
        axis, group = self._axis(inputs.shape), plane_group(self.group)
        check_orientations(inputs.shape[axis], group, self)
        pool = ops.max if self.mode == "max" else ops.mean
        return pool(split_orientations(inputs, axis, group.order), axis=axis + 1)

    def _axis(self, shape):
        return 1 if self.data_format == "channels_first" else len(shape) - 1

    def get_config(self):
        return {
            **super().get_config(),
            "group": self.group,
            "mode": self.mode,
            "data_format": self.data_format,
        }
