"""`PatchSampler`: what kernels are multiplied with, at random positions of random samples."""

import math

import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.pruning.criteria.observer import Observer


class PatchSampler:
    """Draws patches (im2col rows) of the inputs of layers, in the layers' own padding and strides.

    The samples are drawn once and held. Positions are drawn one from each of `positions` equal
    parts of a feature map; they depend on the seed and on the number of positions, not on channels,
    so that a model and its pruned form are looked at in the same places.

    Args:
        samples: `Samples`.
        images: Number of samples to draw; all if there are fewer.
        positions: Number of positions of each; all if there are fewer.
        seed: Of the draws.
        owner: Object or name that error messages begin with.
    """

    def __init__(self, samples, images=256, positions=10, seed=0, owner=None):
        self._images = validation.positive_int("images", images, owner)
        self._positions = validation.positive_int("positions", positions, owner)
        self._seed = validation.seed(seed, owner)
        self._batches = list(self._drawn(samples))

    def rows(self, graph, lowered):
        """The rows that kernels are multiplied with, batch by batch.

        Args:
            graph: `CallGraph` of a model that takes the samples.
            lowered: List of `LoweredKernel` of it.

        Yields:
            `(place in the list, float64 array (groups, rows, taps * input channels))`.
        """
        observer = Observer(graph, [value for one in lowered for value in one.inputs])
        for number, inputs in enumerate(self._batches):
            # Not compiled: few batches, and weights may have changed since the last pass.
            tensors = iter(observer.run([ops.convert_to_tensor(array) for array in inputs]))
            for index, one in enumerate(lowered):
                for call in range(len(one.inputs)):
                    rng = np.random.default_rng([self._seed, number, call])
                    tensor = ops.convert_to_numpy(next(tensors))
                    yield index, one.rows_at(tensor, self._chooser(rng))

    def _chooser(self, rng):
        def choose(samples, positions):
            if positions <= self._positions:
                return np.tile(np.arange(positions), (samples, 1))
            parts = np.arange(self._positions) + rng.random((samples, self._positions))
            return np.floor(parts * (positions / self._positions)).astype(int)

        return choose

    def _drawn(self, samples):
        """Batches of the drawn samples, each of which is as likely as the others."""
        rng = np.random.default_rng(self._seed)
        batches, keys = [], []
        held, limit, size = 0, 1.0, 1
        for inputs, _ in samples:
            size = max(size, len(inputs[0]))
            key = rng.random(len(inputs[0]))
            # Those with the smallest keys stay; what is above the limit has no chance any more.
            chosen = key < limit
            batches.append([array[chosen] for array in inputs])
            keys.append(key[chosen])
            held += int(chosen.sum())
            if held > self._images:
                limit = np.partition(np.concatenate(keys), self._images)[self._images]
                for index, (batch, key) in enumerate(zip(batches, keys, strict=True)):
                    batches[index] = [array[key < limit] for array in batch]
                    keys[index] = key[key < limit]
                held = self._images
        arrays = [np.concatenate(column) for column in zip(*batches, strict=True)]
        for part in range(math.ceil(held / size)):
            yield [array[part * size : (part + 1) * size] for array in arrays]
