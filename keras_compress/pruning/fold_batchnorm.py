"""`fold_batchnorm`: batch normalisation multiplied into the weights beside it."""

import collections

import keras
import numpy as np

from keras_compress.call_graph import CallGraph, Rebuilder, values_of
from keras_compress.convert import check_graph, new_like
from keras_compress.layers.fake_quant_kernel import batch_norm_affine
from keras_compress.pruning.prune_channels import refuse_masked

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_KERNELS = (keras.layers.Dense, *_CONVOLUTIONS, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE)


def fold_batchnorm(model):
    """Folds batch normalisations into the kernels and biases beside them: the same outputs.

    A batch normalisation behind a dense layer or a convolution (depthwise, grouped, separable and
    transposed ones too) without an activation is multiplied into it: `w gamma / sigma`, and a bias
    `beta + (b - mean) gamma / sigma`. One before a dense layer, or before a convolution that pads
    nothing, goes into that. Others stay: where something else reads what is in between, where a
    shared layer has another neighbour at each call, behind an activation and before a padded
    convolution.

    The converter to .tflite folds most of them as well; fold them here for what comes before it:
    counting, pruning, merging of layers. Train before: what is folded no longer follows the
    statistics of the batches.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.

    Returns:
        A new model with fewer layers, compiled like `model` if that is; a plain copy if there is
        nothing to fold.

    Raises:
        ValueError: if the model has no graph or is under a pruning mask.

    Reference:
        Li, Wang, Kong, "DeepRebirth: Accelerating Deep Neural Network Execution on Mobile Devices",
        2018.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
    ...     keras.layers.BatchNormalization(),
    ...     keras.layers.ReLU(),
    ... ])
    >>> [layer.name for layer in kc.pruning.fold_batchnorm(model).layers]
    ['conv', 're_lu']
    """
    check_graph(model, "fold_batchnorm")
    refuse_masked(model, "fold_batchnorm")
    graph = CallGraph(model)
    behind = _norms_behind(graph)
    before = _norms_before(graph, set(map(id, behind.values())))
    changes = {id(norm): (None, ()) for norm in (*behind.values(), *before.values())}
    for call in graph.calls:
        norms = [found.get(id(call.operation)) for found in (behind, before)]
        if norms != [None, None]:
            changes[id(call.operation)] = _folded(call.operation, *norms)
    return Rebuilder(model, changes).run()


def _norms_behind(graph):
    """Dict from the id of a kernel layer to the batch normalisation that follows its every call."""
    followers = {}
    for call in graph.calls:
        if type(call.operation) in _KERNELS:
            norm = call.sole_reader
            if not (_is_norm_of(norm, call.operation) and _adds_up(call.operation)):
                norm = None
            followers.setdefault(id(call.operation), []).append(norm and norm.operation)
    followers = {key: norms[0] for key, norms in followers.items() if len(set(norms)) == 1}
    sources = collections.defaultdict(list)
    for call in graph.calls:
        if type(call.operation) is keras.layers.BatchNormalization:
            before = call.inputs[0].call
            sources[id(call.operation)].append(before and id(before.operation))
    return {
        key: norm
        for key, norm in followers.items()
        if norm and all(followers.get(source) is norm for source in sources[id(norm)])
    }


def _norms_before(graph, folded):
    """Dict from the id of a kernel layer to the batch normalisation that its every call reads.

    Args:
        graph: The `CallGraph`.
        folded: Ids of batch normalisations that are folded already.
    """
    read = collections.defaultdict(list)
    readers = collections.defaultdict(list)
    for call in graph.calls:
        for value in call.inputs:
            norm = value.call and value.call.operation
            read[id(call.operation)].append(norm)
        if type(call.operation) is keras.layers.BatchNormalization:
            readers[id(call.operation)] += call.output.readers
    chosen = {}
    for call in graph.calls:
        norm = call.operation
        if type(norm) is keras.layers.BatchNormalization and id(norm) not in folded:
            known = readers[id(norm)]
            if all(_takes_norm(reader, norm, read) for reader in known):
                chosen.update({id(reader.operation): norm for reader in known})
    return chosen


def _takes_norm(reader, norm, read):
    """Whether a batch normalisation can go into the layer of a call that reads it."""
    if reader is None or any(other is not norm for other in read[id(reader.operation)]):
        return False
    layer = reader.operation
    if type(layer) in _CONVOLUTIONS:
        # Zeros that are padded on do not go through the normalisation.
        padded = layer.padding != "valid" and any(size > 1 for size in layer.kernel_size)
        if padded or layer.groups > 1:
            return False
    elif type(layer) is not keras.layers.Dense:
        return False
    rank = len(reader.inputs[0].shape)
    return _is_plain(layer) and norm.axis % rank == _channel_axis(layer, rank)


def _is_norm_of(call, layer):
    """Whether a call is a batch normalisation of the channels that a layer gives."""
    if call is None or type(call.operation) is not keras.layers.BatchNormalization:
        return False
    rank = len(call.inputs[0].shape)
    return call.operation.axis % rank == _channel_axis(layer, rank)


def _channel_axis(layer, rank):
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def _adds_up(layer):
    """Whether a layer gives plain sums of products."""
    return _is_plain(layer) and layer.activation in (None, keras.activations.linear)


def _is_plain(layer):
    # A LoRA or quantized layer computes with more than its kernel.
    extra = getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None)
    return not extra


def _folded(layer, behind, before):
    """A kernel layer with batch normalisations (or `None`) in it, and its values."""
    new = new_like(layer, {**layer.get_config(), "use_bias": True})
    *first, kernel = values_of(layer)[: 2 if type(layer) in _SEPARABLE else 1]
    bias = None if layer.bias is None else keras.ops.convert_to_numpy(layer.bias)
    if before is not None:
        scale, offset = map(keras.ops.convert_to_numpy, batch_norm_affine(before))
        given = np.tensordot(offset, kernel.sum(tuple(range(kernel.ndim - 2))), 1)
        bias = given if bias is None else given + bias
        kernel = kernel * scale[:, None]
    if behind is not None:
        scale, bias = map(keras.ops.convert_to_numpy, batch_norm_affine(behind, bias))
        kernel = _scaled(layer, kernel, scale)
    return new, [*first, kernel, bias]


def _scaled(layer, kernel, scale):
    """A kernel with each output channel multiplied by a number."""
    if type(layer) in _TRANSPOSED:
        return kernel * scale[:, None]
    if type(layer) in _DEPTHWISE:
        return kernel * scale.reshape(kernel.shape[-2:])
    return kernel * scale
