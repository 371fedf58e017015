"""`Correlation`: connections by how much the two neurons have to do with each other."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.criteria.lowered import LoweredKernel
from keras_compress.pruning.criteria.observer import Observer
from keras_compress.pruning.criteria.weight_criterion import WeightCriterion
from keras_compress.pruning.surgery import feature_maps


class Correlation(WeightCriterion):
    """Scores a weight by the correlation, over the data, of the two neurons that it connects.

    The score is the magnitude of Pearson's coefficient between an input of the layer and an output,
    after batch normalization and activation; in a convolution, whose weights connect many pairs of
    neurons, its mean over positions. A neuron that never changes correlates with nothing. Positive
    and negative correlations count alike. Sun et al. keep some weak connections too: see
    `keep_weak=` of `kc.pruning.prune_weights`.

    Args:
        positions: Positions of a feature map that are looked at, evenly spread; `None` for all,
            which takes memory for `positions * kernel size` numbers.
        normalize: See `Criterion`.

    Reference:
        Sun, Wang, Tang, "Sparsifying Neural Network Connections for Face Recognition", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="fc")])
    >>> _ = model.layers[0].kernel.assign([[-1.0], [0.0]])
    >>> x = np.array([[1.0, 1.0], [2.0, -1.0], [3.0, -1.0], [4.0, 1.0]])
    >>> kc.pruning.criteria.Correlation()(model, data=x)["fc/kernel"].ravel().round(3).tolist()
    [1.0, 0.0]
    """

    needs = "data"

    def __init__(self, positions=64, normalize="none"):
        super().__init__(normalize)
        self.positions = (
            None if positions is None else validation.positive_int("positions", positions, self)
        )

    def score(self, graph, parts, samples, loss):
        lowered = [LoweredKernel(part, graph.graph.calls, self) for part in parts]
        ends = [
            list(zip(one.inputs, map(_activation, one.outputs), strict=True)) for one in lowered
        ]
        values = [value for pairs in ends for pair in pairs for value in pair]
        observer = Observer(graph.graph, values)
        states = [[_Moments() for _ in pairs] for pairs in ends]
        for inputs, _ in samples:
            tensors = iter(observer.activations(inputs))
            for one, moments in zip(lowered, states, strict=True):
                for state in moments:
                    self._update(state, one, next(tensors), next(tensors))
        return [
            one.from_matrices(np.mean([state.correlations() for state in moments], 0))
            for one, moments in zip(lowered, states, strict=True)
        ]

    def _update(self, state, lowered, inputs, outputs):
        responses, start = lowered.responses(outputs), 0
        chosen = slice(None)
        if self.positions is not None and self.positions < responses.shape[2]:
            steps = np.arange(self.positions) + 0.5
            chosen = (steps * responses.shape[2] / self.positions).astype(int)
        for patches in lowered.patches(inputs):
            stop = start + patches.shape[1]
            state.update(patches[:, :, chosen], responses[:, start:stop, chosen])
            start = stop


class _Moments:
    """Sums over samples from which correlations of inputs and outputs at each position follow."""

    def __init__(self):
        self.count = 0

    def update(self, inputs, outputs):
        """Takes in arrays `(groups, samples, positions, inputs or outputs)`."""
        inputs, outputs = (np.moveaxis(a, 1, 2) for a in (inputs, outputs))
        if not self.count:
            # Sums of squares of what is nearly constant cancel, unless they are taken about it.
            self.origins = inputs[:, :, :1].copy(), outputs[:, :, :1].copy()
            self.sums = [0.0] * 5
        inputs, outputs = inputs - self.origins[0], outputs - self.origins[1]
        self.count += inputs.shape[2]
        found = (
            inputs.sum(2),
            outputs.sum(2),
            np.square(inputs).sum(2),
            np.square(outputs).sum(2),
            np.swapaxes(inputs, 2, 3) @ outputs,
        )
        self.sums = [total + one for total, one in zip(self.sums, found, strict=True)]

    def correlations(self):
        """Mean magnitude over positions: `(groups, inputs, outputs)`."""
        x, y, xx, yy, xy = (total / self.count for total in self.sums)
        x_variance, y_variance = xx - x**2, yy - y**2
        covariance = xy - x[..., :, None] * y[..., None, :]
        # What rounding leaves of a constant's variance is no variance.
        x_variance = np.where(x_variance > 1e-12 * xx, x_variance, np.inf)
        y_variance = np.where(y_variance > 1e-12 * yy, y_variance, np.inf)
        scale = np.sqrt(x_variance[..., :, None] * y_variance[..., None, :])
        return np.minimum(np.abs(covariance / scale), 1.0).mean(1)


def _activation(value):
    return feature_maps(value)[-1]
