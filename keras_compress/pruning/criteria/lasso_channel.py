"""`LassoChannel`: input channels in the order in which a growing L1 penalty zeroes them."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram

from keras_compress.pruning.criteria.reader_criterion import ReaderCriterion


class LassoChannel(ReaderCriterion):
    """Scores input channels of a layer by the LASSO of its outputs on their contributions.

    At sampled positions, the outputs Y are the sum of a contribution `Z_c` of each input channel.
    With `beta` the minimum of `|Y - sum_c beta_c Z_c|^2 / 2N + lambda |beta|_1`, and lambda growing
    from 0, channels go as their `beta_c` becomes zero: the score is that lambda, as a share of the
    one at which all are zero. A channel that would come back at a larger one has gone by then. The
    least squares that follow are `reconstruct="least_squares"` of `kc.pruning.prune_channels`.

    Args:
        images: Number of samples that patches are taken from, drawn from the data.
        positions: Number of output positions of each sample.
        seed: Of the draws.
        normalize: See `Criterion`.

    Reference:
        He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3)])
    >>> model.add(keras.layers.Conv2D(8, 3, name="reader"))
    >>> model.add(keras.layers.GlobalAveragePooling2D())
    >>> x = np.random.default_rng(0).normal(size=(32, 8, 8, 3))
    >>> small = kc.pruning.prune_channels(
    ...     model, kc.pruning.criteria.LassoChannel(), 0.5, x, reconstruct="least_squares"
    ... )
    >>> small.layers[0].filters
    8
    """

    def removal(self, products):
        with warnings.catch_warnings():
            # Channels that repeat others never enter the path: they go first.
            warnings.simplefilter("ignore", ConvergenceWarning)
            penalties, _, path = lars_path_gram(
                products.sum(1), products, n_samples=1, method="lasso", max_iter=10 * len(products)
            )
        zero = path == 0
        # The smallest penalty, last in the path, at which each is zero; all are at the first.
        last = zero.shape[1] - 1 - zero[:, ::-1].argmax(1)
        costs = penalties[last] / (penalties[0] or 1.0)
        # The path ends at 0 (or where nothing is left to explain): what is zero there goes first.
        costs[zero[:, -1]] = 0.0
        order = np.lexsort((np.diagonal(products), costs))
        return order, costs[order]
