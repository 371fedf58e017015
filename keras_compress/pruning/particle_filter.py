"""`ParticleFilter`: masks that evolve by their fitness."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.masked_copies import MaskedCopies


class ParticleFilter:
    """Searches masks of a trained model by an evolutionary particle filter.

    Particles are masks of one ratio, judged by the model's own metric on a sample of data, without
    training. In each generation they are drawn anew with a probability that grows with their
    fitness (its distance from the worst, so that a loss serves as well as an accuracy), and
    perturbed by swaps of pruned and kept units; the best so far always stays, unperturbed.

    Args:
        particles: Number of masks of a generation.
        iterations: Number of generations after the first.
        ratio: Share of the filters (kernels) of each layer to prune, in [0, 1). Layers that add up
            count as one.
        mutation: Probability of each pruned unit of a particle to be swapped with a kept one.
        monitor: Name of a logged metric; `None`: `"accuracy"` if the model has it, else `"loss"`.
            Of one whose name ends in "loss" or "error", less is better.
        seed: Seed of all draws.
        batch_size: Rows of arrays at a time.

    Raises:
        ValueError: for arguments that do not make sense; by `search`, for a model that is not
            compiled, has no graph or nothing to prune.

    Reference:
        S. Anwar, K. Hwang, W. Sung, "Structured Pruning of Deep Convolutional Neural Networks",
        2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, activation="relu", name="first"),
    ...     keras.layers.Conv2D(4, 3, activation="relu", name="second"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(2),
    ... ])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("adam", loss, metrics=["accuracy"])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.arange(32) % 2
    >>> search = kc.pruning.ParticleFilter(particles=4, iterations=2, ratio=0.75)
    >>> found = search.search(model, (x, y), granularity="kernel")
    >>> int(found.masks["second"].sum()), found.best == sorted(found.best)
    (4, True)
    """

    def __init__(
        self,
        particles=32,
        iterations=10,
        ratio=0.5,
        mutation=0.1,
        monitor=None,
        seed=0,
        batch_size=256,
    ):
        self.particles = validation.positive_int("particles", particles, self)
        self.iterations = validation.positive_int("iterations", iterations, self)
        self.ratio = validation.number("ratio", ratio, 0, 1, high_open=True, owner=self)
        self.mutation = validation.number("mutation", mutation, 0, 1, low_open=True, owner=self)
        self.monitor = monitor
        self.seed = validation.seed(seed)
        self.batch_size = validation.positive_int("batch_size", batch_size, self)

    def search(self, model, data, granularity="filter"):
        """Searches masks for a model.

        Args:
            model: A built and compiled Sequential or functional model. It is not changed.
            data: What `evaluate` takes: `(x, y)` or a dataset of batches, which must give the same
                samples each time.
            granularity: `"filter"` or `"kernel"`; see `RandomMaskSearch`.

        Returns:
            `FoundMask`: `model`, `masks`, `fitness`, and `best` after each generation.
        """
        copies = MaskedCopies(
            model, data, granularity, self.ratio, self.monitor, self.batch_size, self
        )
        rng = np.random.default_rng(self.seed)
        masks = [copies.draw(rng) for _ in range(self.particles)]
        fitness = np.array([copies.fitness(mask) for mask in masks])
        best = [float(fitness.max())]
        for _ in range(self.iterations):
            elite = masks[int(fitness.argmax())]
            drawn = rng.choice(len(masks), len(masks) - 1, p=_shares(fitness))
            masks = [elite, *(copies.perturb(masks[i], self.mutation, rng) for i in drawn)]
            fitness = np.array([copies.fitness(mask) for mask in masks])
            best.append(float(fitness.max()))
        return copies.found(masks[int(fitness.argmax())], best)


def _shares(fitness):
    """Probabilities in proportion to how far particles are above the worst; never quite zero."""
    above = fitness - fitness.min()
    above = above + (above.mean() * 0.1 or 1.0)
    return above / above.sum()
