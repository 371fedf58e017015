"""k-means of the values or vectors of a kernel."""

import numpy as np

INITS = ("linear", "density", "kmeans++")


#: A round that lowers the sum of squares by less than this share is the last.
_TOLERANCE = 1e-5
#: Most distances that are held at once: few enough for the cache.
_MAX_DISTANCES = 2**20


def kmeans(points, k, init=None, seed=0, max_iter=300):
    """Lloyd's k-means, of several sets of points at once.

    Args:
        points: Float array `(sets, points, length)`.
        k: Number of centres, at most the number of points.
        init: First centres. `"linear"`: evenly over the range of the values, which keeps large
            weights best; `"density"`: at evenly spaced quantiles, so that each centre begins with
            as many values; both for points of length 1. `"kmeans++"`: drawn among the points, far
            from one another. `None`: `"linear"` for length 1, else `"kmeans++"`.
        seed: Seed of `"kmeans++"`.
        max_iter: Most rounds; a round never raises the sum of squared distances.

    Returns:
        `(centres, codes)`: float32 array `(sets, k, length)`, and int array `(sets, points)`, the
        number of the nearest centre of each point. If no more than `k` points of a set are
        distinct, its centres are these points, some repeated.

    Reference:
        Arthur, Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007.
        Han, Mao, Dally, "Deep Compression", 2016, section 3.2, for the other first centres.

    Example:

    >>> centres, codes = kmeans(np.array([[[0.0], [0.2], [1.0]]]), 2)
    >>> centres.ravel().tolist(), codes.tolist()
    ([0.10000000149011612, 1.0], [[0, 0, 1]])
    """
    points = np.asarray(points, "float32")
    rng = np.random.default_rng(seed)
    if points.shape[2] == 1:
        pairs = [_of_values(each[:, 0], k, init or "linear", rng, max_iter) for each in points]
        return tuple(map(np.stack, zip(*pairs, strict=True)))
    centres = _spread_points(points, k, rng)
    codes, errors = _nearest(points, centres)
    active = np.arange(len(points))
    for _ in range(max_iter):
        centres[active] = _means(points[active], codes[active], centres[active])
        codes[active], after = _nearest(points[active], centres[active])
        going = after < (1 - _TOLERANCE) * errors[active]
        errors[active] = after
        active = active[going]
        if not active.size:
            break
    return centres, codes


def _nearest(points, centres):
    """Number of the nearest centre of each point, and each set's sum of squared distances."""
    sets, count, _ = points.shape
    k = centres.shape[1]
    codes = np.empty((sets, count), np.int64)
    errors = np.zeros(sets)
    rows = min(count, max(1, _MAX_DISTANCES // k))
    group = max(1, _MAX_DISTANCES // (k * rows))
    # Less the squared norm of the point, which no choice changes, a distance is one product.
    extended = np.concatenate(
        [-2 * centres, np.sum(np.square(centres), axis=2, keepdims=True)], axis=2
    )
    columns = np.ascontiguousarray(np.swapaxes(extended, 1, 2))
    points_and_one = np.concatenate([points, np.ones((sets, count, 1), "float32")], axis=2)
    for first in range(0, sets, group):
        some = slice(first, first + group)
        for row in range(0, count, rows):
            part = points_and_one[some, row : row + rows]
            codes[some, row : row + rows] = np.argmin(part @ columns[some], axis=2)
    for number in range(sets):
        left = points[number] - centres[number, codes[number]]
        errors[number] = np.einsum("nl,nl", left, left, dtype="float64")
    return codes, errors


def _means(points, codes, centres):
    """Mean of the points of each code; a centre without points stays."""
    sets, k, length = centres.shape
    flat = (codes + k * np.arange(sets)[:, None]).ravel()
    counts = np.bincount(flat, minlength=sets * k)
    sums = np.stack(
        [np.bincount(flat, points[..., i].ravel(), sets * k) for i in range(length)], axis=1
    )
    means = sums / np.maximum(counts, 1)[:, None]
    kept = np.where(counts[:, None] > 0, means, centres.reshape(-1, length))
    return kept.reshape(centres.shape).astype("float32")


def _spread_points(points, k, rng):
    """First centres of k-means++: points, drawn by their squared distance to those before."""
    sets, count, length = points.shape
    every = np.arange(sets)
    centres = np.empty((sets, k, length), "float32")
    chosen = rng.integers(count, size=sets)
    distances = np.full((sets, count), np.inf, "float32")
    for number in range(k):
        centres[:, number] = points[every, chosen]
        # Differences, not products: a point that is chosen is at distance 0, and never drawn again.
        left = points - centres[:, None, number]
        distances = np.minimum(distances, np.einsum("snl,snl->sn", left, left))
        sums = np.cumsum(distances, axis=1, dtype="float64")
        drawn = rng.random(sets) * sums[:, -1]
        chosen = np.minimum(np.sum(sums <= drawn[:, None], axis=1), count - 1)
    return centres


def _of_values(values, k, init, rng, max_iter):
    ordered = np.sort(values)
    distinct = ordered[np.concatenate([[True], np.diff(ordered) > 0])]
    if len(distinct) <= k:
        return np.pad(distinct, (0, k - len(distinct)), mode="edge")[:, None], np.searchsorted(
            distinct, values
        )
    centres = _first_values(ordered, k, init, rng)
    # A cluster of sorted values is an interval, so cumulative sums give its mean: a round of
    # Lloyd's, exactly, costs k binary searches instead of a pass over all values.
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype="float64")])
    before = None
    for _ in range(max_iter):
        ends = _interval_ends(ordered, centres)
        if before is not None and np.array_equal(ends, before):
            break
        before = ends
        counts = np.diff(ends)
        # An empty cluster keeps its centre, and may gain values later.
        centres = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), centres)
    centres = centres.astype("float32")
    return centres[:, None], np.searchsorted(_midpoints(centres), values)


def _midpoints(centres):
    centres = np.asarray(centres, "float64")
    return (centres[:-1] + centres[1:]) / 2


def _interval_ends(ordered, centres):
    inner = np.searchsorted(ordered, _midpoints(centres).astype(ordered.dtype))
    return np.concatenate([[0], inner, [len(ordered)]])


def _first_values(ordered, k, init, rng):
    if init == "linear":
        return np.linspace(ordered[0], ordered[-1], k, dtype="float64")
    if init == "density":
        return np.quantile(ordered, (np.arange(k) + 0.5) / k).astype("float64")
    # Of a sample, which does as well as all.
    sample = rng.choice(ordered, min(len(ordered), 100 * k + 1000), replace=False)
    return np.sort(_spread_points(sample[None, :, None], k, rng).ravel()).astype("float64")
