"""`quantize_mixture`: the weights of a model, set to the means of a learned mixture."""

from keras import ops

from keras_compress import validation
from keras_compress.convert import check_graph, rebuild
from keras_compress.pruning.prunable import kernels_of, prunable_kernels


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
