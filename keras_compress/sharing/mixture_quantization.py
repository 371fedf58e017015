"""`quantize_mixture`: the weights of a model, set to the means of a learned mixture."""

from keras import ops

from keras_compress import matching, validation
from keras_compress.convert import check_graph, rebuild
from keras_compress.pruning.prunable import all_layers, prunable_kernels


def quantize_mixture(model, prior, layers=None, merge_below=0.1):
    """Sets each weight to the mean of its most responsible component of a mixture prior.

    Components that are nearly the same are merged first. All kernels together then have at most as
    many values as there are components left, and what belongs to component 0 is exactly zero.

    What it buys: in a .tflite, codes and a codebook of at most 17 entries; the zeros and the
    entropy of the codes count in the archive and in zipped size.

    Args:
        model: A built Sequential or functional model, trained under `prior`. It is not changed.
        prior: The `kc.regularizers.SoftWeightSharing` after training.
        layers: Keys (layer name, glob, class or predicate) of the layers to quantise, as they were
            given to `kc.callbacks.SoftWeightSharing`. By default every trainable layer with a
            kernel; embeddings only if named.
        merge_below: Components merge while the symmetric KL divergence of the nearest pair is at
            most this: the square of their distance in sigmas, where sigmas are equal. 0 merges only
            those that are the same.

    Returns:
        A new model.

    Raises:
        ValueError: if the model has no graph, a key fits no layer, `merge_below` is negative, or
            the prior has not been trained.

    Reference:
        Ullrich, Meeds, Welling, "Soft Weight-Sharing for Neural Network Compression", 2017.

    Example: see `kc.regularizers.SoftWeightSharing`.
    """
    check_graph(model, "quantize_mixture")
    below = validation.number("merge_below", merge_below, 0, owner="quantize_mixture")
    if not getattr(prior, "started", False):
        raise ValueError(
            "quantize_mixture: `prior` must be a kc.regularizers.SoftWeightSharing that was "
            f"trained by kc.callbacks.SoftWeightSharing(prior) in fit(); got {prior!r}."
        )
    mixture = prior.mixture.merged(below)
    chosen = {id(k.variable) for k in kernels_of(model, layers, "quantize_mixture")}
    new = rebuild(model, {})
    pairs = zip(prunable_kernels(model), prunable_kernels(new), strict=True)
    for kernel, copy in pairs:
        if id(kernel.variable) in chosen:
            copy.variable.assign(mixture.quantize(ops.convert_to_numpy(kernel.variable)))
    return new


def kernels_of(model, keys, owner):
    """The trainable kernels of a model that keys choose.

    Args:
        model: A built model.
        keys: Keys of layers, or `None` for all but embeddings.
        owner: Name of the function that errors speak for.

    Returns:
        List of `PrunableKernel`, not empty.
    """
    kernels = [kernel for kernel in prunable_kernels(model) if kernel.layer.trainable]
    if keys is None:
        chosen = [kernel for kernel in kernels if kernel.attribute != "embeddings"]
    else:
        keys = [keys] if isinstance(keys, (str, type)) or callable(keys) else list(keys)
        for key in keys:
            matching.resolve([key], all_layers(model))
            if not any(kernel.matches(key) for kernel in kernels):
                raise ValueError(
                    f"{owner}: {matching.describe(key)} matches no trainable layer with a kernel. "
                    f"Layers with one: {', '.join(kernel.name for kernel in kernels)}."
                )
        chosen = [kernel for kernel in kernels if any(kernel.matches(key) for key in keys)]
    if not chosen:
        raise ValueError(
            f"{owner}: model '{model.name}' has no trainable layer with a kernel; train it, or "
            "call it on a batch, first."
        )
    return chosen
