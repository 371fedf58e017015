"""SparseBasisConv2D: a convolution as bases of channels and filters, and their sparse mixture."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress.decomposition.decompose import decompose
from keras_compress.decomposition.depthwise import DepthwiseFactors
from keras_compress.decomposition.factors import check_factors
from keras_compress.decomposition.sparse_basis import SparseBasisFactors
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.factorized_conv2d import FactorizedConv2D


@keras.saving.register_keras_serializable(package="keras_compress")
class SparseBasisConv2D(FactorizedConv2D):
    """Convolution in the form `"sparse_basis"`: 1x1, depthwise, and a 1x1 that becomes sparse.

    A basis of the input channels, `rank` filters for each channel of that basis, and the mixture of
    what they give. The columns of both bases are kept at unit norm, so that the mixture alone says
    what counts: `layer.kernel` is the mixture, and regularizer, constraint and pruning masks of the
    kernel act on it. From a trained convolution to a small one:

    1. `from_layer(conv, rank=4, kernel_regularizer=kc.regularizers.SparseGroupLasso(1e-4, 1e-4))`,
       or `kc.decomposition.factorize(model, "sparse_basis", rank=4)`.
    2. `fit` with `kc.callbacks.ProximalGroupLasso()`: entries and whole filters become zero.
    3. `fit` with `kc.callbacks.MagnitudePruning(...)` for a sparsity of your choice, then
       `kc.pruning.strip`.
    4. `kc.pruning.remove_zero_groups(model)` takes out filters that no output uses.

    In a .tflite a sparse mixture takes the room of what is not zero; only step 4 makes it faster.

    Args:
        filters: Number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair; of the depthwise convolution.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"` or `None` (Keras's setting).
        dilation_rate: Integer or pair.
        groups: Must be 1.
        activation: Activation function.
        use_bias: Whether a bias is added.
        rank: Filters of each channel, q of the paper: an integer up to the number of positions of
            the kernel, or of outputs if they are fewer. `from_layer` also takes a float in (0, 1],
            `"evbmf"` or a `kc.decomposition.RankPolicy`; or, instead, `factors=`.
        kernel_initializer: Spread of the kernel that the factors stand for.
        kernel_regularizer: Regularizer of the mixture.
        kernel_constraint: Constraint of the mixture.
        **kwargs: The other arguments of `keras.layers.Conv2D`.

    Input shape:
        `(batch, height, width, channels)`, or channels first.

    Output shape:
        `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: if the rank is larger than the kernel allows, depends on a kernel that a layer
            built from scratch does not have, or `groups` is not 1.

    Reference:
        Liu, Wang, Foroosh, Tappen, Pensky, "Sparse Convolutional Neural Networks", 2015.

    Example:

    >>> layer = SparseBasisConv2D(64, 3, rank=4, use_bias=False)
    >>> layer.build((None, 14, 14, 32))
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(1, 1, 32, 32), (3, 3, 32, 4), (1, 1, 128, 64)]
    """

    forms = ("sparse_basis",)

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
            form="sparse_basis",
            rank=rank,
            **kwargs,
        )

    def build_kernel(self, input_channels):
        ranks = self._resolve(self.rank, input_channels)
        shape = self._kernel_shape(input_channels)
        basis, filters, mixture = SparseBasisFactors.shapes(shape, ranks)
        area = math.prod(self.kernel_size)
        sigma = initializer_stddev(
            self.kernel_initializer, area * input_channels, area * self.filters
        )
        # An entry of the kernel is a sum of `channels * rank` products with one entry of each
        # basis, whose squares are 1 / channels and 1 / area in the mean.
        stddev = sigma * math.sqrt(area / ranks[0])
        self.basis = self._add_basis("basis", basis, (0, 1, 2), 0)
        self.basis_filters = self._add_basis("basis_filters", filters, (0, 1), 1)
        self.kernel = self.add_kernel_weight("kernel", mixture, self.normal_initializer(stddev, 2))
        self.factors = [self.basis, self.basis_filters, self.kernel]

    def _add_basis(self, name, shape, axes, index):
        constraint = keras.constraints.UnitNorm(axis=list(axes))
        normal = self.normal_initializer(1.0, index)
        weight = self.add_weight(
            name=name,
            shape=shape,
            initializer=lambda shape, dtype=None: constraint(normal(shape, dtype)),
            constraint=constraint,
        )
        self._kernel_weights.append(weight)
        return weight

    @classmethod
    def fit_kernel(cls, kernel, *, rank="evbmf", factors=None):
        """Principal components: see `kc.decomposition.SparseBasisFactors`.

        Args:
            kernel: Array `(height, width, channels, filters)`.
            rank: As for `from_layer`.
            factors: `kc.decomposition.SparseBasisFactors` of a kernel of that shape.
        """
        if factors is None:
            factors = decompose(kernel, "sparse_basis", rank, cls.__name__)
        check_factors(factors, kernel, cls.forms, cls.__name__)
        return {"rank": factors.rank[0]}, factors.normalized().arrays

    def without_unused_filters(self):
        """The layer without the filters that the mixture does not use, if that makes it smaller.

        Returns:
            A built `FactorizedConv2D` of the form `"depthwise"` that gives the same outputs; or the
            layer itself, where so few filters are unused that it would have more weights. (There
            each filter needs a column of the basis for itself.)
        """
        self.check_built("without_unused_filters")
        factors = SparseBasisFactors(map(ops.convert_to_numpy, self.factors))
        used = factors.used()
        # A convolution needs a channel.
        used[0] |= not used.any()
        smaller = factors.without(~used)
        (limit,) = DepthwiseFactors.limits(self._kernel_shape(self.input_channels))
        if smaller.rank[0] > limit or smaller.params() >= factors.params():
            return self
        config = self.get_config()
        names = (*self._carried, *self.source_arguments)
        layer = FactorizedConv2D.from_config(
            {**{name: config[name] for name in names}, "form": "depthwise", "rank": smaller.rank[0]}
        )
        layer.build(self._build_shape())
        for weight, value in zip(layer.kernel_weights, smaller.arrays, strict=True):
            weight.assign(np.ascontiguousarray(value))
        if self.bias is not None:
            layer.bias.assign(ops.convert_to_numpy(self.bias))
        return layer

    def get_config(self):
        config = super().get_config()
        del config["form"]
        return config
