"""`ThiNet`: input channels by the error that the layer which reads them would have."""

import numpy as np

from keras_compress.pruning.criteria.reader_criterion import ReaderCriterion


class ThiNet(ReaderCriterion):
    """Scores input channels of a layer by the error that removing them leaves in its outputs.

    At sampled positions, each output is a sum of one contribution `x_c` for each input channel. The
    removed set T grows greedily: next goes the channel that leaves `sum (sum_{c in T} x_c)^2` the
    least. The score of a channel is that error when it goes, as a share of the outputs' squared
    norm. All outputs at a position count, where the paper draws one. For the rescaling of those
    that stay give `reconstruct="scale"` to `kc.pruning.prune_channels`.

    Args:
        images: Number of samples that patches are taken from, drawn from the data.
        positions: Number of output positions of each sample.
        seed: Of the draws.
        normalize: See `Criterion`.

    Reference:
        Luo, Wu, Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression",
        2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3)])
    >>> model.add(keras.layers.Conv2D(8, 3, name="reader"))
    >>> model.add(keras.layers.GlobalAveragePooling2D())
    >>> x = np.random.default_rng(0).normal(size=(32, 8, 8, 3))
    >>> kc.pruning.criteria.ThiNet()(model, "reader", x)["reader"].shape
    (16,)
    """

    def removal(self, products):
        count = len(products)
        order, costs = np.empty(count, int), np.empty(count)
        # |sum of T + x_c|^2 = |sum of T|^2 + 2 <sum of T, x_c> + |x_c|^2.
        error, overlaps = 0.0, np.zeros(count)
        left = np.ones(count, bool)
        for step in range(count):
            errors = np.where(left, error + 2 * overlaps + np.diagonal(products), np.inf)
            order[step] = chosen = errors.argmin()
            # Rounding may leave a trace below zero.
            costs[step] = error = max(errors[chosen], 0.0)
            overlaps += products[chosen]
            left[chosen] = False
        return order, costs
