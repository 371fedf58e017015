"""`RandomMaskSearch`: the best of many random masks."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.masked_copies import GRANULARITIES, MaskedCopies


class RandomMaskSearch:
    """Draws random masks over filters or kernels of a trained model, and keeps the best one.

    Each mask prunes the same share of every layer and is judged by the model's own metric on a
    sample of data, without training. Search filters first and then kernels of the result, as the
    paper does, and fine-tune in between.

    Args:
        trials: Number of masks.
        ratio: Share of the filters (kernels) of each layer to prune, in [0, 1). Layers that add up
            count as one.
        granularity: `"filter"`: whole channels of all layers, which are cut out. `"kernel"`: 2-D
            slices of convolution kernels, one for each input and output channel, which become zero.
        monitor: Name of a logged metric; `None`: `"accuracy"` if the model has it, else `"loss"`.
            Of one whose name ends in "loss" or "error", less is better.
        seed: Seed of the draws; the first masks of a longer search are those of a shorter one.
        batch_size: Rows of arrays at a time.

    Raises:
        ValueError: for arguments that do not make sense; by `search`, for a model that is not
            compiled, has no graph or nothing to prune.

    Reference:
        S. Anwar, W. Sung, "Coarse Pruning of Convolutional Neural Networks with Random Masks",
        2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(6, 3, activation="relu", name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(2),
    ... ])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("adam", loss, metrics=["accuracy"])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.arange(32) % 2
    >>> found = kc.pruning.RandomMaskSearch(trials=10, ratio=0.5).search(model, (x, y))
    >>> found.model.get_layer("conv").filters, int(found.masks["conv"].sum()), len(found.best)
    (3, 3, 10)
    """

    def __init__(
        self, trials=100, ratio=0.5, granularity="filter", monitor=None, seed=0, batch_size=256
    ):
        self.trials = validation.positive_int("trials", trials, self)
        self.ratio = validation.number("ratio", ratio, 0, 1, high_open=True, owner=self)
        self.granularity = validation.one_of("granularity", granularity, GRANULARITIES, self)
        self.monitor = monitor
        self.seed = validation.seed(seed)
        self.batch_size = validation.positive_int("batch_size", batch_size, self)

    def search(self, model, data):
        """Searches masks for a model.

        Args:
            model: A built and compiled Sequential or functional model. It is not changed.
            data: What `evaluate` takes: `(x, y)` or a dataset of batches, which must give the same
                samples each time.

        Returns:
            `FoundMask`: `model`, `masks`, `fitness`, and `best` after each trial.
        """
        copies = MaskedCopies(
            model, data, self.granularity, self.ratio, self.monitor, self.batch_size, self
        )
        rng = np.random.default_rng(self.seed)
        winner, best = None, []
        for _ in range(self.trials):
            mask = copies.draw(rng)
            fitness = copies.fitness(mask)
            if not best or fitness > best[-1]:
                winner = mask
            best.append(max([fitness, *best[-1:]]))
        return copies.found(winner, best)
