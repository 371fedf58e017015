"""LCCLConv2D: a convolution beside a cheap one that says where its result counts."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.layers.block import Block, chain
from keras_compress.layers.compressed_convolution import pair
from keras_compress.layers.fitted_block import carried, check_conv2d, image_shape


@keras.saving.register_keras_serializable(package="keras_compress")
class LCCLConv2D(Block):
    """Convolution, times a low-cost collaborative layer (LCCL) of the same input.

    `y = activation(conv(x) + bias) * relu(batch_norm(lccl(x)))`, where `lccl` is a 1x1 convolution,
    or one filter of the kernel's size that all output channels share. Where the LCCL gives zero,
    the convolution need not be computed: `skip_ratio` says for what share of the outputs, and
    `run_sparse` leaves them out. The kernels of TensorFlow, XLA and LiteRT compute all of them, so
    that there the layer costs more than the convolution alone.

    Outputs grow with the square of the input's scale. In residual blocks, as in the paper, that is
    well; a VGG-like net with twelve such layers in a row did not train.

    It takes the place of a `keras.layers.Conv2D`. No single stock layer is its equal: `expand()`
    gives a model of them, as of every `Block`.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair, of the convolution.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        data_format: See `Block`.
        dilation_rate: Integer or pair.
        groups: Groups of the convolution; the LCCL has one.
        activation: Of the convolution, before the product: an elementwise one.
        use_bias: Whether the convolution has a bias.
        kernel_initializer: Of both kernels; each draws its own.
        bias_initializer: Of the bias.
        kernel_regularizer: Of both kernels.
        bias_regularizer: Of the bias.
        activity_regularizer: Of the output.
        kernel_constraint: Of the kernel of the convolution.
        bias_constraint: Of the bias.
        kind: `"1x1"`, a zero for each position and channel, or `"shared"`, for each position.
        **kwargs: `name`, `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new height, new width, filters)`, or channels first.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        Dong, Huang, Yang, Yan, "More Is Less: A More Complicated Network with Less Inference
        Complexity", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> keras.utils.set_random_seed(0)
    >>> layer = kc.layers.LCCLConv2D(8, 3, padding="same", kind="shared")
    >>> x = np.random.default_rng(0).normal(size=(2, 16, 16, 4)).astype("float32")
    >>> outputs, macs = layer.run_sparse(x)
    >>> bool(np.allclose(outputs, layer(x), atol=1e-5))
    True
    >>> macs == round((1 - layer.skip_ratio(x)) * 2 * 16 * 16 * 9 * 4 * 8)
    True
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        data_format=None,
        dilation_rate=(1, 1),
        groups=1,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        kind="1x1",
        **kwargs,
    ):
        super().__init__(
            kernel_initializer,
            keras.regularizers.get(kernel_regularizer),
            data_format,
            activity_regularizer=activity_regularizer,
            **kwargs,
        )
        self.filters = validation.positive_int("filters", filters, self)
        self.kernel_size = pair("kernel_size", kernel_size, self)
        self.strides = pair("strides", strides, self)
        self.dilation_rate = pair("dilation_rate", dilation_rate, self)
        padding = padding.lower() if isinstance(padding, str) else padding
        self.padding = validation.one_of("padding", padding, ("valid", "same"), self)
        self.groups = validation.positive_int("groups", groups, self)
        self.kind = validation.one_of("kind", kind, ("1x1", "shared"), self)
        self.activation = keras.activations.get(activation)
        self.use_bias = bool(use_bias)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                "LCCLConv2D: `strides` > 1 does not go with `dilation_rate` > 1; got strides="
                f"{self.strides}, dilation_rate={self.dilation_rate}."
            )
        if getattr(self.activation, "__name__", "") in ("softmax", "log_softmax", "sparsemax"):
            raise ValueError(
                "LCCLConv2D: `activation` must be elementwise, since outputs are left out; got "
                f"activation={activation!r}. Put a keras.layers.Softmax behind the layer."
            )
        if self.filters % self.groups:
            raise ValueError(
                "LCCLConv2D: `filters` must be a multiple of `groups`; got "
                f"filters={self.filters}, groups={self.groups}."
            )

    def make_layers(self, channels):
        geometry = {"strides": self.strides, "padding": self.padding}
        self.convolution = self.conv(
            "conv",
            self.filters,
            self.kernel_size,
            **geometry,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            activation=self.activation,
            use_bias=self.use_bias,
            bias_initializer=self.bias_initializer,
            bias_regularizer=self.bias_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
        )
        self.crop = None
        if self.kind == "shared":
            self.lccl = self.conv(
                "lccl", 1, self.kernel_size, **geometry, dilation_rate=self.dilation_rate
            )
        else:
            lost = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation_rate, strict=True)]
            if self.padding == "valid" and any(lost):
                # A 1x1 window at the centre of each window of the kernel.
                self.crop = self.part(
                    keras.layers.Cropping2D,
                    "crop",
                    tuple((n // 2, n - n // 2) for n in lost),
                    data_format=self.data_format,
                )
            self.lccl = self.conv("lccl", self.filters, 1, **geometry)
        self.lccl_norm = self.norm("lccl_norm")
        self.lccl_act = self.activate("lccl_act", "relu")
        self.multiply = self.part(keras.layers.Multiply, "multiply")

    def call(self, inputs):
        return self.multiply([self.convolution(inputs), self._collaborate(inputs)])

    def _collaborate(self, inputs):
        return chain([self.crop, self.lccl, self.lccl_norm, self.lccl_act], inputs)

    def skip_ratio(self, x):
        """Share of the outputs that are zero because the LCCL is: that can be skipped.

        The LCCL's own multiply-accumulates have to be paid for all the same: one of
        `height * width` of the convolution's with `"1x1"`, of `filters` with `"shared"`.

        Args:
            x: Array of inputs.
        """
        return float(np.mean(self._mask(x) == 0))

    def run_sparse(self, x):
        """Inference that computes the convolution only where the LCCL is not zero.

        By numpy: for counting, and to see what skipping would need. See `kc.sparse.masked_conv2d`.

        Args:
            x: Array of inputs.

        Returns:
            `(outputs, macs)`: the outputs, as the layer gives them, and how many
            multiply-accumulates the convolution took for all samples.
        """
        # Above this floor.
        from keras_compress.sparse.masked_conv2d import masked_conv2d

        mask = self._mask(x)
        order, back = (0, 1, 2, 3), (0, 1, 2, 3)
        if self.data_format == "channels_first":
            order, back = (0, 2, 3, 1), (0, 3, 1, 2)
        conv = self.convolution
        outputs, macs = masked_conv2d(
            ops.convert_to_numpy(x).transpose(order),
            ops.convert_to_numpy(conv.kernel),
            mask.transpose(order),
            self.strides,
            self.padding,
            self.dilation_rate,
        )
        if self.use_bias:
            outputs += ops.convert_to_numpy(conv.bias)
        # Skipped outputs have a bias and an activation too, and are multiplied by zero.
        outputs = self.activation(ops.convert_to_tensor(outputs.transpose(back)))
        return ops.convert_to_numpy(outputs) * mask, macs

    def _mask(self, x):
        """What the LCCL gives, as an array."""
        x = ops.convert_to_tensor(x, self.compute_dtype)
        if not self.built:
            self.build(x.shape)
        return ops.convert_to_numpy(ops.cast(self._collaborate(x), "float32"))

    @classmethod
    def from_layer(cls, layer, kind="1x1", exact=True, **options):
        """Starts from a trained `keras.layers.Conv2D`, whose weights the convolution keeps.

        Args:
            layer: A built layer.
            kind: See the class.
            exact: Whether the LCCL begins as one everywhere (scale 0 and offset 1 of its batch
                normalisation), so that outputs are those of `layer`. It then skips nothing, and
                learned to in no layer of a VGG-like net in 15 epochs. `False` begins as a new one,
                about half of whose outputs are zero, and needs fine-tuning.
            **options: Arguments of the class to change.

        Returns:
            A built block.

        Raises:
            ValueError: if `layer` is another one or not built.
        """
        check_conv2d(cls, layer)
        names = ("filters", "kernel_size", "dilation_rate", "groups", "use_bias")
        config = {**carried(layer), **{name: getattr(layer, name) for name in names}}
        block = cls.from_config({**config, "kind": kind, **options})
        block.build(image_shape(layer))
        block.convolution.set_weights(layer.get_weights())
        if exact:
            gamma, beta = block.lccl_norm.gamma, block.lccl_norm.beta
            gamma.assign(np.zeros(gamma.shape))
            beta.assign(np.ones(beta.shape))
        return block

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "kind": self.kind,
        }
