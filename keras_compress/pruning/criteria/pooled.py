"""`PooledCriterion`: criteria that look at one number for each feature map and sample."""

import numpy as np

from keras_compress.pruning.criteria.criterion import ActivationCriterion


class PooledCriterion(ActivationCriterion):
    """Base of criteria on global averages of the maps; a subclass writes `of_pooled`."""

    def update(self, state, maps, gradients=None, targets=None):
        pooled, seen = ([], []) if state is None else state
        pooled.append(maps.astype("float64").mean(1))
        seen.append(targets)
        return pooled, seen

    def result(self, state):
        pooled, seen = state
        targets = None if seen[0] is None else np.concatenate(seen)
        return self.of_pooled(np.concatenate(pooled), targets)

    def of_pooled(self, pooled, targets):
        """Scores `(channels,)`.

        Args:
            pooled: Array `(samples, channels)`.
            targets: Array of all targets, or `None`.
        """
        raise NotImplementedError
