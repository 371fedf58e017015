"""What tensorflow-model-optimization wraps around layers, taken off again.

Wrappers are known by their class names, so that tfmot itself is not imported here.
"""

import dataclasses

from keras_compress.interop import variables


@dataclasses.dataclass
class Bare:
    """A tf_keras layer without its tfmot wrapper.

    Attributes:
        layer: The layer, or `None` for a layer of tfmot's own that only quantises.
        arrays: List of `(name, array)` in the order of the layer's variables.
        quantized: Whether it computed in fake-quantised numbers inside its wrapper.
    """

    layer: object
    arrays: list
    quantized: bool = False


def bare(layer):
    """Takes the tfmot wrapper off a tf_keras layer, if there is one.

    Pruned weights come with their mask applied, clustered ones as their centroids. What
    `quantize_apply` wrapped comes with the float weights that were trained behind the fake
    quantisation.

    Args:
        layer: Layer of tf_keras. It is not changed.

    Returns:
        A `Bare`; of a layer without a wrapper, that layer.
    """
    kinds = {
        base.__name__
        for base in type(layer).__mro__
        if base.__module__.startswith("tensorflow_model_optimization.")
    }
    if "PruneLowMagnitude" in kinds:
        return Bare(layer.layer, _masked(layer))
    if "ClusterWeights" in kinds:
        return Bare(layer.layer, _clustered(layer))
    if "QuantizeAnnotate" in kinds:
        return Bare(layer.layer, variables.of(layer.layer))
    if "QuantizeWrapper" in kinds:
        return Bare(layer.layer, _behind_quantizers(layer), quantized=True)
    if "QuantizeLayer" in kinds:
        return Bare(None, [], quantized=True)
    return Bare(layer, variables.of(layer))


def float_activation(activation):
    """The activation inside tfmot's quantising one; others as they are."""
    kind = type(activation).__name__
    if kind == "QuantizeAwareActivation":
        return float_activation(activation.activation)
    return None if kind == "NoOpActivation" else activation


def _masked(wrapper):
    masks = {id(weight): mask.numpy() for weight, mask, _ in wrapper.pruning_vars}
    return [
        (variable.name, variable.numpy() * masks.get(id(variable), 1))
        for variable in variables.depth_first(wrapper.layer)
    ]


def _clustered(wrapper):
    if not wrapper.built:
        return []
    # As each call of the wrapper and tfmot's own strip_clustering do: the layer then holds the
    # centroids, as tensors, in the place of its variables.
    wrapper.update_clustered_weights_associations()
    if type(wrapper.layer).__name__ == "MultiHeadAttention":
        return variables.of(wrapper.layer)
    arrays = variables.of(wrapper.layer)
    for position, name in sorted(wrapper.position_original_weights.items()):
        original = wrapper.original_clusterable_weights[name]
        arrays.insert(position, (original.name, wrapper.get_weight_from_layer(name).numpy()))
    return arrays


def _behind_quantizers(wrapper):
    # The layer's attributes hold quantised tensors now; the wrapper keeps the variables.
    kept = [weight for weight, _, _ in getattr(wrapper, "_weight_vars", ())]
    known = {id(variable) for variable in kept}
    rest = [v for v in variables.depth_first(wrapper.layer) if id(v) not in known]
    return [(variable.name, variable.numpy()) for variable in [*kept, *rest]]
