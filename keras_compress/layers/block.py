"""Block: base of the layers that are several stock layers at once."""

import keras

from keras_compress import validation

#: Stands for an open size while sublayers are built.
_PROBE = 256


class Block(keras.layers.Layer):
    """Base of blocks: an ordinary layer that holds stock layers, and can be opened into them.

    A block runs in two ways, with the same weights and the same code:

    - `block(x)`: one layer of the model, as any other. It trains, saves, exports and is counted by
      `kc.profile.macs`; what looks at single kernels (channel pruning, `kc.convert`,
      `quantize_aware`, `factorize`) sees one layer that it does not know and leaves it whole.
    - `block.functional(x)`: its stock layers become layers of the model around it, named
      `"<name>_<part>"`, so that everything of this package sees them. The networks of `kc.models`
      are built so.

    A model that holds blocks as layers is opened by
    `kc.convert(model, {kc.layers.Block: lambda block: block.expand()})`.

    A subclass writes `make_layers(channels)`, which sets its sublayers as attributes, and
    `call(inputs)`, which calls nothing but them and `keras.ops`.

    Args:
        kernel_initializer: Of all kernels; each draws its own.
        kernel_regularizer: Of all kernels.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.
    """

    _ndim = 4

    def __init__(
        self,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.data_format = validation.one_of(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
            self,
        )
        if self._ndim is not None:
            self.input_spec = keras.layers.InputSpec(ndim=self._ndim)

    # What a subclass writes.

    def make_layers(self, channels):
        """Sets the sublayers as attributes.

        Args:
            channels: Number of channels of the input.
        """
        raise NotImplementedError

    # What every block gets from it.

    def build(self, input_shape):
        channels = input_shape[self.channel_axis]
        if channels is None:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' needs the number of channels (axis "
                f"{self.channel_axis}) of its input; got input_shape={tuple(input_shape)}. Give "
                "`keras.Input` a shape whose channel axis is a number."
            )
        self._input_shape_built = tuple(input_shape)
        self.make_layers(int(channels))
        if not self.trainable:
            # Said before there were sublayers to hear it.
            self.trainable = False
        # Builds the sublayers and leaves no node on them. No weight depends on an open size, and
        # JAX cannot compare those.
        batch, *sizes = input_shape
        probe = (batch, *(_PROBE if size is None else size for size in sizes))
        self.compute_output_spec(keras.KerasTensor(probe, dtype=self.compute_dtype))
        axes = {self.channel_axis: int(channels)}
        self.input_spec = keras.layers.InputSpec(ndim=self._ndim, axes=axes)

    def compute_output_spec(self, inputs, **kwargs):
        return keras.Operation.compute_output_spec(self, inputs, **kwargs)

    def compute_output_shape(self, input_shape):
        block = self
        if not self.built:
            block = self._twin()
            block.build(input_shape)
        return block.compute_output_spec(keras.KerasTensor(input_shape)).shape

    def functional(self, inputs):
        """Calls the block's layers as layers of the model around it.

        Args:
            inputs: Symbolic tensor of a functional model.

        Returns:
            The symbolic output.
        """
        if not self.built:
            self.build(inputs.shape)
        return self.call(inputs)

    def expand(self, input_shape=None):
        """The equivalent model of stock layers: same name, copied weights.

        Args:
            input_shape: Shape of the input with the batch axis, in place of the one that the block
                was built for.

        Raises:
            ValueError: if the block is not built.
        """
        if not self.built:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' is not built: call it on an input (or its "
                "build()) before expand()."
            )
        model, twin = self._opened(input_shape or self._input_shape_built)
        twin.set_weights(self.get_weights())
        return model

    def macs(self, input_shape):
        """Multiply-accumulates of one sample, those of the layers inside.

        Args:
            input_shape: Shape of the input; the batch size is ignored.
        """
        # Above this floor.
        from keras_compress.profile.macs import macs

        return macs(self._opened(input_shape)[0])

    def _opened(self, input_shape):
        """`(model, block)`: a functional model of a new block like this one."""
        twin = self._twin()
        inputs = keras.Input(batch_shape=(None, *input_shape[1:]))
        model = keras.Model(inputs, twin.functional(inputs), name=self.name)
        model.trainable = self.trainable
        return model, twin

    def _twin(self):
        return type(self).from_config(self.get_config())

    @property
    def channel_axis(self):
        return 1 if self.data_format == "channels_first" and self._ndim == 4 else -1

    # Sublayers.

    def part(self, cls, part, *args, **kwargs):
        """A sublayer, named after the block."""
        return cls(*args, name=f"{self.name}_{part}", dtype=self.dtype_policy, **kwargs)

    def kernel_part(self, cls, part, *args, **kwargs):
        """A sublayer with a kernel."""
        name = "depthwise" if cls is keras.layers.DepthwiseConv2D else "kernel"
        # Anew from its configuration: one initializer called twice gives equal values.
        initializer = keras.initializers.serialize(self.kernel_initializer)
        kwargs = {
            f"{name}_initializer": keras.initializers.get(initializer),
            f"{name}_regularizer": self.kernel_regularizer,
            **kwargs,
        }
        if cls is not keras.layers.Dense:
            kwargs["data_format"] = self.data_format
        return self.part(cls, part, *args, **kwargs)

    def conv(self, part, filters, kernel_size, **kwargs):
        """A `Conv2D`, padded to `"same"` size and without bias unless said otherwise."""
        options = {"padding": "same", "use_bias": False, **kwargs}
        return self.kernel_part(keras.layers.Conv2D, part, filters, kernel_size, **options)

    def norm(self, part):
        """A `BatchNormalization` over the channels."""
        return self.part(keras.layers.BatchNormalization, part, axis=self.channel_axis)

    def activate(self, part, activation):
        """An `Activation`."""
        return self.part(keras.layers.Activation, part, activation)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "data_format": self.data_format,
        }


def chain(layers, inputs):
    """Calls layers in turn; `None`s are left out."""
    for layer in layers:
        if layer is not None:
            inputs = layer(inputs)
    return inputs
