"""`PenaltyRamp`: a regularizer whose strength grows while `fit` runs."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.callbacks.guests import lend, take_back
from keras_compress.pruning.prunable import all_layers
from keras_compress.regularizers import BinaryAttraction

# Attribute of a layer that holds the factor while it grows.
_ATTRIBUTE = "penalty_factor"


class PenaltyRamp(keras.callbacks.Callback):
    """Multiplies the penalties of a kind by a factor that grows linearly to 1 over some epochs.

    The factor is a variable of the model for the length of the `fit`, so that the compiled step
    stays the same. It counts epochs as `fit` does: `initial_epoch` goes on where an earlier fit
    stopped. Afterwards the model is as before, but for its weights.

    Args:
        epochs: Number of epochs until the factor is 1; it is `start` in epoch 0.
        start: Factor to begin with, in [0, 1].
        kind: Class of the regularizers.

    Raises:
        ValueError: for arguments out of range; at the start of `fit`, if no weight has a
            regularizer of this kind.

    Reference:
        Soulie, Gripon, Robert, "Compression of Deep Neural Networks on the Fly", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> attraction = kc.regularizers.BinaryAttraction(0.1, scale=0.2)
    >>> model = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(4, kernel_regularizer=attraction)]
    ... )
    >>> model.compile("adam", "mse")
    >>> ramp = kc.callbacks.PenaltyRamp(epochs=20)
    >>> x, y = np.zeros((640, 8)), np.zeros((640, 4))
    >>> history = model.fit(x, y, epochs=40, callbacks=[ramp], verbose=0)
    >>> sizes = np.abs(keras.ops.convert_to_numpy(model.layers[0].kernel))
    >>> bool((np.abs(sizes - 0.2) < 0.02).mean() > 0.9)
    True
    """

    def __init__(self, epochs, start=0.0, kind=BinaryAttraction):
        super().__init__()
        self.epochs = validation.positive_int("epochs", epochs, self)
        self.start = validation.number("start", start, 0, 1, owner=self)
        if not isinstance(kind, type):
            raise ValueError(
                "PenaltyRamp: `kind` must be a class of regularizers, such as "
                f"kc.regularizers.BinaryAttraction; got kind={kind!r}."
            )
        self.kind = kind

    def set_model(self, model):
        super().set_model(model)
        # What a fit that was interrupted has left.
        _take_off(model)
        self._factor = _Factor(name=_ATTRIBUTE)
        host = None
        for layer in all_layers(model):
            for variable in getattr(layer, "_trainable_variables", ()):
                if isinstance(variable.regularizer, self.kind):
                    host = host or layer
                    variable.regularizer = _Ramped(variable.regularizer, self._factor)
        if host is None:
            raise ValueError(
                f"PenaltyRamp: no weight of model '{model.name}' has a {self.kind.__name__}; make "
                "a layer with kernel_regularizer=..., and build the model before fit()."
            )
        lend(host, _ATTRIBUTE, self._factor)
        model.train_function = model.test_function = None

    def on_epoch_begin(self, epoch, logs=None):
        share = min(1.0, epoch / self.epochs)
        self._factor.value.assign(self.start + (1 - self.start) * share)

    def on_train_end(self, logs=None):
        _take_off(self.model)


class _Factor(keras.layers.Layer):
    """Layer of one number."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.value = self.add_weight(
            name="value",
            shape=(),
            initializer="ones",
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        self.built = True


class _Ramped:
    """Regularizer: a factor times the regularizer that was there before."""

    def __init__(self, before, factor):
        self.before = before
        self.factor = factor

    def __call__(self, weight):
        return ops.multiply(self.factor.value, self.before(weight))


def _take_off(model):
    take_back(model, _ATTRIBUTE)
    for variable in model.trainable_variables:
        if isinstance(variable.regularizer, _Ramped):
            variable.regularizer = variable.regularizer.before
    model.train_function = model.test_function = None
