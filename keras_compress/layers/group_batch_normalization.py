"""GroupBatchNormalization: batch normalization of group-equivariant feature maps."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.layers.plane_groups import check_orientations, plane_group, split_orientations


@keras.saving.register_keras_serializable(package="keras_compress")
class GroupBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization with one mean, variance, `gamma` and `beta` a feature map.

    Stock batch normalization scales each orientation that `P4Conv2D` or `P4MConv2D` gives a feature
    map on its own, and the network is no longer equivariant. `expand()` is the stock layer with the
    same outputs at inference, and what a .tflite gets.

    Args:
        group: `"p4"` (4 orientations) or `"p4m"` (8).
        axis: Axis of the channels.
        momentum: Momentum of the moving averages.
        epsilon: Added to the variance.
        center: Whether `beta` is added.
        scale: Whether `gamma` multiplies.
        **kwargs: The other arguments of `keras.layers.BatchNormalization`, but `renorm`.

    Input shape:
        Any, with channels along `axis`, which the orientations divide.

    Output shape:
        The same.

    Raises:
        ValueError: if `group` is not of these, `renorm` is asked for, or the orientations do not
            divide the channels.

    Reference:
        Cohen, Welling, "Group Equivariant Convolutional Networks", 2016.

    Example:

    >>> layer = GroupBatchNormalization("p4")
    >>> layer.build((None, 28, 28, 64))
    >>> layer.gamma.shape == (16,)
    True
    """

    def __init__(
        self,
        group="p4",
        axis=-1,
        momentum=0.99,
        epsilon=1e-3,
        center=True,
        scale=True,
        **kwargs,
    ):
        if kwargs.get("renorm"):
            raise ValueError(
                f"{validation.prefix(self)}`renorm` must be False; got renorm={kwargs['renorm']!r}."
            )
        super().__init__(
            axis=axis, momentum=momentum, epsilon=epsilon, center=center, scale=scale, **kwargs
        )
        self.group = plane_group(group, "GroupBatchNormalization").name

    def build(self, input_shape):
        group, axis = plane_group(self.group), self.axis % len(input_shape)
        channels = input_shape[axis]
        check_orientations(channels, group, self)
        # Feature maps and orientations become two axes, of which the stock layer sees the first.
        split = (
            *input_shape[:axis],
            channels // group.order,
            group.order,
            *input_shape[axis + 1 :],
        )
        given, self.axis = self.axis, axis
        super().build(split)
        self.axis = given
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={axis: channels})

    def call(self, inputs, training=None):
        axis = self.axis % len(inputs.shape)
        split = split_orientations(inputs, axis, plane_group(self.group).order)
        given, self.axis = self.axis, axis
        outputs = super().call(split, training=training)
        self.axis = given
        return ops.reshape(outputs, (-1, *ops.shape(inputs)[1:]))

    def expand(self):
        """The stock `keras.layers.BatchNormalization` with the same outputs at inference."""
        if not self.built:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' has no weights yet; call it on a batch "
                "before expand()."
            )
        config = self.get_config()
        del config["group"]
        stock = keras.layers.BatchNormalization.from_config(config)
        stock.build(self._build_shapes_dict["input_shape"])
        order = plane_group(self.group).order
        for new, old in zip(stock.variables, self.variables, strict=True):
            new.assign(np.repeat(ops.convert_to_numpy(old), order))
        return stock

    def export_form(self):
        """The stock layer: see `expand`."""
        return self.expand()

    def get_config(self):
        return {**super().get_config(), "group": self.group}
