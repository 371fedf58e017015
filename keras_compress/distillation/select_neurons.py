"""Which of the teacher's neurons a student should learn (face neurons)."""

import numpy as np

from keras_compress import validation

_STARTS = 16


def select_neurons(features, labels, keep, pairwise=1.0):
    """Chooses neurons that tell the labels and do not repeat each other.

    Minimises the energy `- sum_i R2_i + pairwise * sum_(i < j) r_ij^2` over the sets of `keep`
    neurons. `R2_i` is the share of neuron i's variance that the labels explain (least squares), 0
    to 1: neurons that answer to something else (pose, noise) or to nothing go last. `r_ij` is the
    correlation of two neurons in what the labels do not explain: two neurons of one class with
    separate noise are worth having, copies are not. With `pairwise >= 1` a copy is never worth its
    place.

    Sets are built greedily from each of the 16 best single neurons and improved by exchanges of one
    neuron until none helps; the best of them is returned. For few neurons that is the minimum; for
    many, it may be a local one.

    Args:
        features: The teacher's activations, `(samples, neurons)`. There should be many more samples
            than labels, or every neuron seems to tell them.
        labels: Class ids `(samples,)`, or attributes `(samples, attributes)`: binary, or any
            numbers.
        keep: Number of neurons to keep.
        pairwise: Weight of the second term, at least 0.

    Returns:
        Array of `keep` indices, ascending: `neurons` of `SelectedNeurons`.

    Raises:
        ValueError: for shapes that do not fit, and numbers out of range.

    Reference:
        P. Luo, Z. Zhu, Z. Liu, X. Wang, X. Tang, "Face Model Compression by Distilling Knowledge
        from Neurons", 2016.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 200)
    >>> noise = rng.normal(size=(200, 4))
    >>> noise[:, [1, 3]] += 2 * labels[:, None]
    >>> kc.distillation.select_neurons(noise, labels, keep=2)
    array([1, 3])
    """
    features, labels = _check(features, labels)
    neurons = features.shape[1]
    keep = validation.integer("keep", keep, 1, neurons, owner="select_neurons")
    pairwise = validation.number("pairwise", pairwise, 0, owner="select_neurons")
    unary, similarity = _energy_terms(features, labels)
    pairs = pairwise * similarity

    starts = np.argsort(-unary, kind="stable")[:_STARTS]
    sets = [_exchange(_grow(start, unary, pairs, keep), unary, pairs) for start in starts]
    return np.flatnonzero(min(sets, key=lambda chosen: _energy(chosen, unary, pairs)))


def _energy(chosen, unary, pairs):
    return 0.5 * pairs[np.ix_(chosen, chosen)].sum() - unary[chosen].sum()


def _grow(start, unary, pairs, keep):
    """Adds the neuron that raises the energy least, until `keep` are chosen."""
    chosen = np.zeros(len(unary), bool)
    chosen[start] = True
    for _ in range(keep - 1):
        cost = pairs @ chosen - unary
        cost[chosen] = np.inf
        chosen[np.argmin(cost)] = True
    return chosen


def _exchange(chosen, unary, pairs):
    """Exchanges the best pair of a chosen neuron and another one, until none lowers the energy."""
    while True:
        cost = pairs @ chosen - unary
        inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        change = cost[None, outside] - cost[inside, None] - pairs[np.ix_(inside, outside)]
        if not change.size or change.min() > -1e-9:
            return chosen
        row, column = np.unravel_index(np.argmin(change), change.shape)
        chosen[[inside[row], outside[column]]] = False, True


def _check(features, labels):
    features, labels = np.asarray(features, "float64"), np.asarray(labels)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(
            "select_neurons: `features` must be finite numbers (samples, neurons); got shape "
            f"{features.shape}. Average the positions of feature maps first."
        )
    if labels.ndim not in (1, 2) or len(labels) != len(features):
        raise ValueError(
            "select_neurons: `labels` must be class ids (samples,) or attributes "
            f"(samples, attributes) of the {len(features)} samples; got shape {labels.shape}."
        )
    if labels.ndim == 1:
        labels = labels[:, None] == np.unique(labels)
    return features, labels.astype("float64")


def _energy_terms(features, labels):
    """`R2` of each neuron, and the squared correlations of what the labels leave."""
    centred = features - features.mean(axis=0)
    labels = labels - labels.mean(axis=0)
    residual = centred - labels @ np.linalg.lstsq(labels, centred, rcond=None)[0]
    total, left = (np.square(x).sum(axis=0) for x in (centred, residual))
    # Up to rounding: constant neurons, and neurons that are functions of the labels alone.
    dead = total <= 1e-12 * np.square(features).sum(axis=0)
    exact = left <= 1e-12 * total
    unary = np.where(dead, 0.0, 1.0 - left / np.where(dead, 1.0, total))
    columns = np.where(exact, centred, residual)
    norms = np.linalg.norm(columns, axis=0)
    columns = np.where(dead, 0.0, columns / np.where(norms > 0, norms, 1.0))
    similarity = np.square(columns.T @ columns)
    np.fill_diagonal(similarity, 0.0)
    return unary, similarity
