"""`remove_zero_groups`: what a group lasso has set to zero goes for good."""

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.call_graph import Rebuilder, values_of
from keras_compress.convert import check_graph
from keras_compress.layers import SparseBasisConv2D
from keras_compress.pruning.dead_channels import without_dead_channels
from keras_compress.pruning.prune_channels import refuse_masked
from keras_compress.pruning.surgery import ChannelGraph


def remove_zero_groups(model, threshold=0.0):
    """Removes groups of weights that are zero: filters, input channels and residual branches.

    For the groups of `kc.regularizers.GroupLasso`, as `kc.callbacks.ProximalGroupLasso` zeroes
    them:

    - `"filter"` (`"columns"`): a filter of zeros gives its bias alone. It goes with its map; the
      constant is added to the biases of the layers that read it (see `remove_dead`).
    - `"channel"` (`"rows"`): a channel that no weight reads goes with the filter that makes it.
    - `"depth"`: a branch of a residual addition that gives zeros goes as a whole. One that ends
      in a bias, or a batch normalisation that adds one, gives other constants: it shrinks to one
      channel.

    - Filters of a `kc.layers.SparseBasisConv2D` that its mixture does not use (an input's weights
      are zero, `"channel"`) go, where the layer becomes smaller by it.

    This goes on until nothing more is found. `"shape"` groups and blocks of zeros stay in the
    kernel.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        threshold: Filters and channels whose root mean square is at most this share of the largest
            one's in the same kernel are set to zero first; in [0, 1). Then the outputs change;
            with 0 they are the same.

    Returns:
        A smaller model, compiled like `model` if that is. Fine-tune it.

    Raises:
        ValueError: if the model has no graph or is under a pruning mask, or `threshold` is out of
            range.

    Reference:
        Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", 2016.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(6, 3, name="conv"),
    ...     keras.layers.Conv2D(4, 3),
    ... ])
    >>> kernel, bias = model.layers[1].get_weights()
    >>> kernel[:, :, 2:] = 0.0
    >>> model.layers[1].set_weights([kernel, bias])
    >>> kc.pruning.remove_zero_groups(model).get_layer("conv").filters
    2
    """
    name = "remove_zero_groups"
    check_graph(model, name)
    refuse_masked(model, name)
    threshold = validation.number("threshold", threshold, 0, 1, high_open=True, owner=name)
    if threshold:
        model = Rebuilder(model).run()
        graph = ChannelGraph(model)
        for part in (*graph.producers, *graph.consumers):
            _zero_small(part.variable, part.place, threshold)
        for layer in _sparse_bases(model):
            _zero_small(layer.kernel, -2, threshold)
    smaller = {id(layer): layer.without_unused_filters() for layer in _sparse_bases(model)}
    changes = {key: (new, values_of(new)) for key, new in smaller.items() if id(new) != key}
    if changes:
        model = Rebuilder(model, changes).run()
    return without_dead_channels(model, branches=True)


def _sparse_bases(model):
    """The `SparseBasisConv2D`s of a model."""
    return [layer for layer in matching.leaf_layers(model) if isinstance(layer, SparseBasisConv2D)]


def _zero_small(variable, place, threshold):
    """Zeroes the groups along an axis of a kernel that are small beside the largest."""
    kernel = keras.ops.convert_to_numpy(variable)
    axes = tuple(axis for axis in range(kernel.ndim) if axis != place % kernel.ndim)
    sizes = np.sqrt(np.square(kernel.astype("float64")).mean(axes, keepdims=True))
    variable.assign(np.where(sizes > threshold * sizes.max(), kernel, np.zeros_like(kernel)))
