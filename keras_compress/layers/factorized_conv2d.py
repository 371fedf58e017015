"""FactorizedConv2D: a convolution run as a chain of smaller ones."""

import math
import numbers

import keras
from keras import ops

from keras_compress import validation
from keras_compress.decomposition.decompose import FORMS, decompose
from keras_compress.decomposition.factors import check_factors
from keras_compress.decomposition.ranks import resolve_rank
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_conv2d import CompressedConv2D, refuse_groups
from keras_compress.layers.stored_layers import StoredChain

#: Those whose arrays train as they are: the others have layers of their own.
_FORMS = tuple(
    name for name, cls in FORMS.items() if cls.stages and name not in ("sparse_basis", "ternary")
)


@keras.saving.register_keras_serializable(package="keras_compress")
class FactorizedConv2D(CompressedConv2D):
    """2-D convolution whose kernel is stored in factors and run as a chain of convolutions.

    With a `d x d` kernel from `S` to `T` channels, and nothing but the product between the steps:

    | `form` | runs as | stored values |
    |---|---|---|
    | `"svd"` | d x d to R, 1x1 to T | `R (d^2 S + T)` |
    | `"spatial"` | d x 1 to R, 1 x d to T | `R d (S + T)` |
    | `"tucker"` | 1x1 to R1, d x d to R2, 1x1 to T | `S R1 + d^2 R1 R2 + R2 T` |
    | `"cp"` | 1x1 to R, depthwise d x 1, depthwise 1 x d, 1x1 to T | `R (S + 2d + T)` |
    | `"spatial_channel"` | d x 1 to R1, 1 x d to R2, 1x1 to T | `d R1 (S + R2) + R2 T` |
    | `"separable_basis"` | depthwise d x 1 to R S, depthwise 1 x d, 1x1 to T | `R S (2d + T)` |
    | `"monochromatic"` | 1x1 to R, depthwise d x d to T, an order | `R S + d^2 T + T` |
    | `"depthwise"` | 1x1 to R, depthwise d x d, 1x1 to T | `R (S + d^2 + T)` |
    | `"depthwise_separable"` | depthwise d x d to R S, 1x1 to T | `R S (d^2 + T)` |
    | `"bicluster"` | order, grouped 1x1, d x d and 1x1, orders | see `BiclusterFactors` |

    Multiply-accumulates fall by about the same ratio; in the .tflite the steps are CONV_2D and
    DEPTHWISE_CONV_2D, so the saving becomes latency. `"tucker"` and `"spatial"` are the safe
    choices; `"cp"` is the smallest, the hardest to fine-tune (use a small learning rate).

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair; each axis is strided where its kernel runs.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Must be 1.
        activation: Activation function, after the last step only.
        use_bias: Whether a bias is added, after the last step only.
        form: Name of the form, as above.
        rank: Number of channels between the steps: an integer, or for `"tucker"` and
            `"spatial_channel"` also a pair. One integer goes to both, or as much of it as each can
            use. For `"monochromatic"` the number of colours, which divides T; for `"bicluster"`
            four integers: groups of inputs and of outputs, and the two ranks of a block.
            `from_layer` also takes a float in (0, 1] (share of the squared singular values to keep
            in each unfolding), `"evbmf"` (singular values above the noise; its default) or a
            `kc.decomposition.RankPolicy`; or, instead of form and rank, `factors=`, what
            `kc.decomposition.decompose` gave.
        kernel_initializer: Spread of the kernel that the n factors stand for: each is normal with
            standard deviation `(sigma^2 / prod rank)^(1 / 2n)`.
        **kwargs: The other arguments of `keras.layers.Conv2D`; regularizer and constraint of the
            kernel act on each factor.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if a rank is larger than the kernel allows, depends on a kernel that a layer
            built from scratch does not have, or `groups` is not 1.

    Reference:
        Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank
        Expansions", 2014 (spatial, scheme 2).
        Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned
        CP-Decomposition", 2014.
        Tai, Xiao, Wang, E, "Convolutional Neural Networks with Low-rank Regularization", 2015
        (spatial, closed form).
        Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power
        Mobile Applications", 2015 (Tucker-2 with EVBMF).

    Example:

    >>> layer = FactorizedConv2D(256, 3, padding="same", form="tucker", rank=64, use_bias=False)
    >>> layer.build((None, 14, 14, 256))
    >>> layer.count_params(), layer.expand().count_params()
    (69632, 589824)
    """

    #: Names of the forms that the class can run.
    forms = _FORMS

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
        *,
        form="tucker",
        rank,
        **kwargs,
    ):
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            **kwargs,
        )
        refuse_groups(self.groups, self)
        self.form = validation.one_of("form", form, self.forms, self)
        ranks = self._resolve(rank, math.inf)
        # One integer for two ranks stays one until the input channels say what each can use.
        self.rank = int(rank) if isinstance(rank, numbers.Integral) else _plain(ranks)

    def _resolve(self, rank, input_channels):
        shape = self._kernel_shape(input_channels)
        ranks = resolve_rank(rank, FORMS[self.form].limits(shape), owner=self)
        FORMS[self.form].check_rank(shape, ranks, self)
        return ranks

    def _kernel_shape(self, input_channels):
        return (*self.kernel_size, input_channels, self.filters)

    def build_kernel(self, input_channels):
        ranks = self._resolve(self.rank, input_channels)
        self.rank = _plain(ranks)
        shape = self._kernel_shape(input_channels)
        area = math.prod(self.kernel_size)
        sigma = initializer_stddev(
            self.kernel_initializer, area * input_channels, area * self.filters
        )
        form = FORMS[self.form]
        steps = list(zip(form.stages, form.shapes(shape, ranks), strict=True))
        factors = sum(stage.kind != "order" for stage, _ in steps)
        stddev = (sigma**2 / form.terms(ranks)) ** (1 / (2 * factors))
        orders = iter(form.orders(shape, ranks))
        self.factors = [
            self._add_order(f"order_{k}", next(orders))
            if stage.kind == "order"
            else self.add_kernel_weight(f"factor_{k}", size, self.normal_initializer(stddev, k))
            for k, (stage, size) in enumerate(steps)
        ]

    def _add_order(self, name, order):
        weight = self.add_weight(
            name=name,
            shape=order.shape,
            dtype="int32",
            initializer=lambda shape, dtype: ops.convert_to_tensor(order, dtype),
            trainable=False,
        )
        self._kernel_weights.append(weight)
        return weight

    def apply_kernel(self, inputs):
        outputs = inputs
        for stage, factor in zip(FORMS[self.form].stages, self.factors, strict=True):
            if stage.kind == "order":
                outputs = ops.take(outputs, factor, axis=self._channel_axis)
                continue
            convolve = ops.depthwise_conv if stage.kind == "depthwise" else ops.conv
            outputs = convolve(
                outputs,
                factor,
                strides=_along(self.strides, stage),
                padding=self.padding,
                data_format=self.data_format,
                dilation_rate=_along(self.dilation_rate, stage),
            )
        return outputs

    def reconstruct_kernel(self):
        return FORMS[self.form](ops.convert_to_numpy(f) for f in self.factors).reconstruct()

    def export_form(self):
        """The layer itself, or its steps where zeros of the last one need not be stored."""
        stages = FORMS[self.form].stages
        ordered = any(stage.kind == "order" for stage in stages)
        if ordered or ops.convert_to_numpy(self.factors[-1]).all():
            return self
        return StoredChain(self._steps(stages), name=self.name, dtype=self.dtype_policy)

    def _steps(self, stages):
        """The chain as stock layers, built and with their weights."""
        steps, shape = [], self._build_shape()
        for k, (stage, factor) in enumerate(zip(stages, self.factors, strict=True)):
            last = k == len(stages) - 1
            options = {
                "strides": _along(self.strides, stage),
                "padding": self.padding,
                "data_format": self.data_format,
                "dilation_rate": _along(self.dilation_rate, stage),
                "use_bias": last and self.use_bias,
                "activation": self.activation if last else None,
                "name": f"{self.name}_{k}",
                "dtype": self.dtype_policy,
            }
            size = factor.shape[:2]
            if stage.kind == "depthwise":
                step = keras.layers.DepthwiseConv2D(
                    size, depth_multiplier=factor.shape[3], **options
                )
            else:
                step = keras.layers.Conv2D(
                    factor.shape[3],
                    size,
                    groups=shape[self._channel_axis] // factor.shape[2],
                    **options,
                )
            step.build(shape)
            step.kernel.assign(ops.convert_to_numpy(factor))
            if step.use_bias:
                step.bias.assign(ops.convert_to_numpy(self.bias))
            shape = step.compute_output_shape(shape)
            steps.append(step)
        return steps

    def kernel_macs(self, input_size, output_size):
        shape = self._kernel_shape(self.input_channels)
        ranks = self._resolve(self.rank, self.input_channels)
        return FORMS[self.form].macs(shape, ranks, input_size, output_size)

    @classmethod
    def from_layer(cls, layer, **options):
        refuse_groups(getattr(layer, "groups", 1), cls.__name__)
        return super().from_layer(layer, **options)

    @classmethod
    def fit_kernel(cls, kernel, *, form="tucker", rank="evbmf", factors=None):
        """Fits the factors: see `kc.decomposition.decompose`.

        Args:
            kernel: Array `(height, width, channels, filters)`.
            form: As for the layer.
            rank: As for `from_layer`.
            factors: `kc.decomposition.Factors` of a kernel of that shape, to be taken as they are.
        """
        if factors is None:
            validation.one_of("form", form, cls.forms, cls.__name__)
            factors = decompose(kernel, form, rank, cls.__name__)
        check_factors(factors, kernel, cls.forms, cls.__name__)
        return {"form": factors.form, "rank": _plain(factors.rank)}, factors.arrays

    def get_config(self):
        return {**super().get_config(), "form": self.form, "rank": self.rank}


def _along(values, stage):
    return tuple(value if axis in stage.axes else 1 for axis, value in enumerate(values))


def _plain(ranks):
    return ranks[0] if len(ranks) == 1 else ranks
