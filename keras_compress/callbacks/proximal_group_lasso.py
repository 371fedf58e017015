"""`ProximalGroupLasso`: exact zeros from a group lasso, while `fit` runs."""

import keras
from keras import ops

from keras_compress import matching, validation
from keras_compress.pruning.prunable import all_layers
from keras_compress.regularizers import GroupLasso


class ProximalGroupLasso(keras.callbacks.Callback):
    """Lets `GroupLasso` penalties act as proximal steps, so that whole groups become exactly zero.

    A penalty in the loss makes groups small but never zero: its gradient overshoots. With this
    callback, every `kc.regularizers.GroupLasso` of the model leaves the loss for the length of the
    `fit`, and instead each update is followed, inside the compiled step, by the penalty's proximal
    operator with the optimizer's current learning rate (also one from a schedule). The reported
    loss is then the loss without the penalty. After `fit` the model is as before, but for its
    weights.

    Adaptive optimizers (Adam and its kin) divide even the smallest gradient by its own size, which
    lifts vanished groups a little at every step: what is still below `threshold` when training ends
    is set to zero.

    Args:
        layers: Keys (layer name, glob, class or predicate) of the layers that it acts on; by
            default, on every weight with a `GroupLasso`.
        threshold: Groups whose root mean square is at most this share of the largest group's in
            the same weight become zero when training ends; in [0, 1), 0 for none.

    Raises:
        ValueError: if `threshold` is out of range; at the start of `fit`, if no weight has a
            `GroupLasso`.

    Reference:
        N. Parikh, S. Boyd, "Proximal Algorithms", 2014. W. Wen et al., "Learning Structured
        Sparsity in Deep Neural Networks", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(256, 8))
    >>> y = x[:, :2] @ rng.normal(size=(2, 4))
    >>> lasso = kc.regularizers.GroupLasso("rows", strength=0.05)
    >>> model = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(4, kernel_regularizer=lasso)]
    ... )
    >>> model.compile(keras.optimizers.SGD(0.1), "mse")
    >>> lasso_steps = kc.callbacks.ProximalGroupLasso()
    >>> history = model.fit(x, y, epochs=20, callbacks=[lasso_steps], verbose=0)
    >>> rows = np.abs(keras.ops.convert_to_numpy(model.layers[0].kernel)).sum(1)
    >>> [bool(used) for used in rows > 0]
    [True, True, False, False, False, False, False, False]
    """

    def __init__(self, layers=None, threshold=0.02):
        super().__init__()
        self.threshold = validation.number("threshold", threshold, 0, 1, high_open=True, owner=self)
        if isinstance(layers, (str, type)) or callable(layers):
            layers = (layers,)
        self.layers = None if layers is None else tuple(layers)
        self._variables = []

    def set_model(self, model):
        super().set_model(model)
        self._variables = self._choose(model)
        for variable in self._variables:
            penalty, after = _penalty(variable), variable.constraint
            if isinstance(after, _ProximalStep):
                # Left by a fit that was interrupted.
                after = after.after
            variable.constraint = _ProximalStep(penalty, model.optimizer, after)
            variable.regularizer = None
        model.train_function = None

    def _choose(self, model):
        within = [model]
        if self.layers is not None:
            within = [layer for layer, _ in matching.resolve(self.layers, all_layers(model))]
        chosen = {}
        for layer in within:
            for variable in layer.trainable_variables:
                if _penalty(variable) is not None:
                    chosen[id(variable)] = variable
        if not chosen:
            raise ValueError(
                "ProximalGroupLasso: no weight to act on has a GroupLasso; make a layer with "
                "kernel_regularizer=kc.regularizers.GroupLasso(...), and build the model before "
                "fit()."
            )
        return list(chosen.values())

    def on_train_end(self, logs=None):
        for variable in self._variables:
            step = variable.constraint
            variable.regularizer, variable.constraint = step.penalty, step.after
            if self.threshold:
                variable.assign(step.penalty.without_small_groups(variable, self.threshold))
        self._variables = []
        self.model.train_function = None


class _ProximalStep:
    """Constraint: the proximal operator of a penalty, then the constraint that was there before."""

    def __init__(self, penalty, optimizer, after):
        self.penalty = penalty
        self.optimizer = optimizer
        self.after = after

    def __call__(self, weight):
        step = self.optimizer.learning_rate
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if inner.gradient_accumulation_steps:
            # Constraints run after every batch, updates do not.
            last = (inner._iterations + 1) % inner.gradient_accumulation_steps == 0
            step = step * ops.cast(last, step.dtype)
        weight = self.penalty.proximal(weight, step)
        return weight if self.after is None else self.after(weight)


def _penalty(variable):
    """The `GroupLasso` of a weight, also while a proximal step stands for it."""
    if isinstance(variable.constraint, _ProximalStep):
        return variable.constraint.penalty
    return variable.regularizer if isinstance(variable.regularizer, GroupLasso) else None
