"""`TieWeights`: weights that came close to one another become one, and are trained as one."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.pruning.prunable import kernels_of, trained_model
from keras_compress.regularizers.density_diversity import DensityDiversity


class TieWeights(keras.callbacks.Callback):
    """Alternates phases of free training and phases in which equal weights stay equal.

    For the companion of `kc.regularizers.DensityDiversity`, whose penalty draws weights together.
    At the end of a free phase, weights of a kernel that lie within `tolerance` of their neighbour
    in value are tied: they get their mean, and groups that reach zero get zero. During the tied
    phase each group moves by the mean of what the optimizer would do to its weights (with SGD, by
    the mean of their gradients), inside the compiled step, and the penalty is off. Then all are
    free again, from where they are. Training ends with the weights tied. Each change of phase
    compiles the training step anew.

    Weights that a callback of pruning holds at zero stay at zero.

    Args:
        tolerance: Largest distance between neighbours that are tied, as a share of the standard
            deviation of the kernel's weights that are not zero, >= 0.
        free_epochs: Epochs of a free phase.
        tied_epochs: Epochs of a tied phase.
        layers: Keys (layer name, glob, class or predicate) of the layers whose kernels are tied; by
            default those with a `DensityDiversity`.

    Raises:
        ValueError: for numbers out of range; at the start of `fit`, if there is no such kernel.

    Reference:
        S. Wang, H. Cai, J. Bilmes, W. Noble, "Training Compressed Fully-Connected Networks with a
        Density-Diversity Penalty", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> penalty = kc.regularizers.DensityDiversity(density=1e-3, diversity=1e-3)
    >>> layer = keras.layers.Dense(16, kernel_regularizer=penalty)
    >>> model = keras.Sequential([keras.Input((8,)), layer])
    >>> model.compile(keras.optimizers.SGD(0.05), "mse")
    >>> x = np.random.default_rng(0).normal(size=(64, 8))
    >>> ties = kc.callbacks.TieWeights(tolerance=0.1)
    >>> history = model.fit(x, np.tile(x, 2), epochs=4, callbacks=[ties], verbose=0)
    >>> bool(len(np.unique(keras.ops.convert_to_numpy(layer.kernel))) < 64)
    True
    """

    def __init__(self, tolerance=1e-2, free_epochs=1, tied_epochs=1, layers=None):
        super().__init__()
        self.tolerance = validation.number("tolerance", tolerance, 0, owner=self)
        self.free_epochs = validation.positive_int("free_epochs", free_epochs, self)
        self.tied_epochs = validation.positive_int("tied_epochs", tied_epochs, self)
        self.layers = layers
        self._variables = []

    def set_model(self, model):
        super().set_model(model)
        kernels = kernels_of(trained_model(model, self), self.layers, "TieWeights")
        for kernel in kernels:
            if isinstance(kernel.variable.constraint, _Tied):
                # Left by a fit that was interrupted.
                _untie(kernel.variable)
                model.train_function = None
        self._variables = [
            kernel.variable
            for kernel in kernels
            if self.layers is not None or isinstance(kernel.variable.regularizer, DensityDiversity)
        ]
        if not self._variables:
            raise ValueError(
                "TieWeights: no kernel has a DensityDiversity; make a layer with kernel_regularizer"
                "=kc.regularizers.DensityDiversity(...), or choose kernels by `layers`."
            )
        self._tied = False

    def on_epoch_begin(self, epoch, logs=None):
        tied = epoch % (self.free_epochs + self.tied_epochs) >= self.free_epochs
        if tied and not self._tied:
            self._tie()
        elif self._tied and not tied:
            self._untie()

    def on_train_end(self, logs=None):
        if self._tied:
            self._untie()
            return
        self._average()

    def _tie(self):
        for variable, groups in self._average():
            _tie(variable, groups)
        self._tied = True
        self._recompile()

    def _untie(self):
        for variable in self._variables:
            _untie(variable)
        self._tied = False
        self._recompile()

    def _average(self):
        """Gives the weights of a group one value; list of `(variable, groups)`."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        found = []
        for variable in self._variables:
            value = ops.convert_to_numpy(variable)
            groups = tie_groups(value, self.tolerance)
            variable.assign(group_values(value, groups))
            found.append((variable, groups))
        return found

    def _recompile(self):
        # Constraints and regularizers are part of the compiled step.
        self.model.train_function = None
        self.model.make_train_function()


class _Tied:
    """Constraint: each group of weights gets the mean of its weights.

    After an update from equal weights that is their old value and the mean of their updates.
    """

    def __init__(self, groups, after, penalty):
        self.groups = groups.ravel()
        self.sizes = np.bincount(self.groups).astype("float32")
        # Group 0 is that of the zeros.
        self.scale = np.where(np.arange(len(self.sizes)) > 0, 1 / np.maximum(self.sizes, 1), 0)
        self.after = after
        self.penalty = penalty

    def __call__(self, weight):
        dtype = keras.backend.standardize_dtype(weight.dtype)
        flat = ops.cast(ops.reshape(weight, (-1,)), "float32")
        sums = ops.segment_sum(flat, self.groups, num_segments=len(self.sizes))
        means = sums * ops.convert_to_tensor(self.scale.astype("float32"))
        tied = ops.cast(ops.reshape(ops.take(means, self.groups), ops.shape(weight)), dtype)
        return tied if self.after is None else self.after(tied)


def tie_groups(weights, tolerance):
    """Numbers of the groups of weights to tie.

    Args:
        weights: Array.
        tolerance: Largest distance of neighbours in value, as a share of the standard deviation of
            the weights that are not zero.

    Returns:
        Integer array of the same shape: 0 for the group that zero is in (none may be), 1 and on for
        the others, in the order of their values.

    Example:

    >>> tie_groups(np.array([0.5, -0.3, 0.0, 0.51, -0.01]), 0.1)
    array([2, 1, 0, 2, 0])
    """
    flat = np.append(np.ravel(weights).astype("float64"), 0.0)
    live = flat[flat != 0]
    width = tolerance * (live.std() if live.size else 0.0)
    order = np.argsort(flat, kind="stable")
    numbers = np.empty(flat.size, int)
    numbers[order] = np.append(0, np.cumsum(np.diff(flat[order]) > width))
    zero = numbers[-1]
    numbers = np.where(numbers < zero, numbers + 1, np.where(numbers == zero, 0, numbers))
    return numbers[:-1].reshape(np.shape(weights))


def group_values(weights, groups):
    """The weights with each group at its mean, and group 0 at zero."""
    flat = groups.ravel()
    sizes = np.maximum(np.bincount(flat), 1)
    means = np.bincount(flat, np.ravel(weights).astype("float64")) / sizes
    means[0] = 0.0
    return means[groups].astype(weights.dtype)


def _tie(variable, groups):
    variable.constraint = _Tied(groups, variable.constraint, variable.regularizer)
    variable.regularizer = None


def _untie(variable):
    tied = variable.constraint
    variable.constraint, variable.regularizer = tied.after, tied.penalty
