"""`equal_clusters`: k-means with clusters of equal size."""

import numpy as np
from scipy.optimize import linear_sum_assignment

_ROUNDS, _STARTS = 30, 10


def equal_clusters(count, number, centre, gains, seed=0):
    """Clusters of equal size that gain the most.

    Assignments (optimal under equal sizes) and centres are found in turn, from several starts.

    Args:
        count: Number of members, a multiple of `number`.
        number: Number of clusters.
        centre: Function from an array of members to the centre of a cluster of them.
        gains: Function from a list of centres to an array `(count, number)`: what each member gains
            in each cluster.
        seed: Of the starts.

    Returns:
        `(members, centres)`: members cluster by cluster, `(number, count // number)`.
    """
    rng, size = np.random.default_rng(seed), count // number
    best, most = None, -np.inf
    for _ in range(1 if number in (1, count) else _STARTS):
        members = rng.permutation(count) if 1 < number < count else np.arange(count)
        centres = [centre(part) for part in np.sort(members.reshape(number, size), 1)]
        before = -np.inf
        for _ in range(_ROUNDS):
            table = np.repeat(gains(centres), size, axis=1)
            rows, places = linear_sum_assignment(table, maximize=True)
            gained = table[rows, places].sum()
            if gained <= before + 1e-9 * abs(before):
                break
            before = gained
            parts = [rows[places // size == n] for n in range(number)]
            centres = [centre(part) for part in parts]
        if before > most:
            best, most = (np.array(parts), centres), before
    return best


def k_means(vectors, number):
    """As `equal_clusters`, of vectors `(count, length)` by their squared distances.

    Returns:
        Array `(number, count // number)` of members.
    """
    vectors = np.asarray(vectors, "float64")

    def gains(centres):
        centres = np.array(centres)
        return 2 * vectors @ centres.T - np.sum(centres**2, 1)

    members, _ = equal_clusters(len(vectors), number, lambda part: vectors[part].mean(0), gains)
    return members
