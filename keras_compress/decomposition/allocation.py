"""`greedy_ranks`: ranks of several layers to one budget, by the energy that they keep."""

import numpy as np


class RankCurve:
    """What the ranks of one layer keep, and what they cost.

    Args:
        spectra: For each rank of the form, a list of `(squares, shape)`: squared singular values of
            the matrices that it bounds.
        limits: Largest value of each rank.
        cost: Function from a tuple of ranks to the layer's cost.
        dense: The layer's cost as it is.
    """

    def __init__(self, spectra, limits, cost, dense):
        self.kept = [_kept(one, limit) for one, limit in zip(spectra, limits, strict=True)]
        self.limits, self.cost, self.dense = tuple(limits), cost, dense

    def energy(self, ranks):
        """Product over the ranks of the share of the squared singular values that is kept."""
        return float(np.prod([kept[r] for kept, r in zip(self.kept, ranks, strict=True)]))

    def removal(self, ranks):
        """The cheapest removal of one term: `(relative loss for each unit of cost, ranks)`."""
        found = []
        now = self.cost(ranks)
        for place, (kept, rank) in enumerate(zip(self.kept, ranks, strict=True)):
            if rank > 1:
                lower = (*ranks[:place], rank - 1, *ranks[place + 1 :])
                loss = 1.0 - kept[rank - 1] / kept[rank] if kept[rank] > 0 else 0.0
                found.append((loss / max(now - self.cost(lower), 1e-12), lower))
        return min(found, default=(np.inf, None))


def _kept(unfoldings, limit):
    """Share kept by 0, 1, ... terms: the least over the matrices that one rank bounds."""
    shares = np.ones(limit + 1)
    for squares, _ in unfoldings:
        sums = np.concatenate([[0.0], np.cumsum(np.maximum(squares, 0.0))])
        if sums[-1] > 0:
            index = np.minimum(np.arange(limit + 1), len(sums) - 1)
            shares = np.minimum(shares, sums[index] / sums[-1])
    return shares


def greedy_ranks(curves, budget):
    """Ranks that together cost at most the budget, removing the least missed term at each step.

    The term that goes is the one whose relative loss of energy is least for the cost it saves, so
    that the product of the energies over all layers falls as little as possible. A layer whose
    ranks never came to cost less than the layer as it is stays as it is.

    Args:
        curves: List of `RankCurve`.
        budget: Number that the costs may add up to.

    Returns:
        List with a tuple of ranks for each layer, or `None` where it stays as it is; or, if even
        ranks of 1 are above the budget, `None`.

    Reference:
        Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and
        Detection", 2016, section 2.4.
    """
    ranks = [curve.limits for curve in curves]
    costs = [min(curve.cost(r), curve.dense) for curve, r in zip(curves, ranks, strict=True)]
    removals = [curve.removal(r) for curve, r in zip(curves, ranks, strict=True)]
    while sum(costs) > budget:
        place = min(range(len(curves)), key=lambda n: removals[n][0])
        lower = removals[place][1]
        if lower is None:
            return None
        curve, ranks[place] = curves[place], lower
        costs[place] = min(curve.cost(lower), curve.dense)
        removals[place] = curve.removal(lower)
    return [
        r if curve.cost(r) < curve.dense else None for curve, r in zip(curves, ranks, strict=True)
    ]
