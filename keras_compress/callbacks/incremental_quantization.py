"""`IncrementalQuantization`: weights that become powers of two, the largest first."""

import warnings

import keras
import numpy as np

from keras_compress import validation
from keras_compress.callbacks.frozen_weights import FrozenWeights
from keras_compress.callbacks.mask_callback import variable_scope
from keras_compress.pruning.prunable import kernels_of, unbuilt_layers
from keras_compress.pruning.pruning_mask import carry_masks
from keras_compress.quantizers import PowerOfTwo
from keras_compress.quantizers import get as get_quantizer


class IncrementalQuantization(keras.callbacks.Callback):
    """Quantises a trained model step by step during `fit` (INQ).

    At each step the free weights of largest magnitude join those that are quantised, until these
    are the step's portion of the kernel; they go to their nearest level and are frozen, and the
    rest is retrained. Each kernel's largest level `2^n1` follows from its weights at the start and
    stays; free weights that outgrow it become it.

    Frozen weights are held inside the compiled training step, bit for bit and whatever the
    optimizer. Steps begin with an epoch: step i with epoch `i * epochs_per_step` of those that this
    callback has seen. A `fit` of `(len(portions) - 1) * epochs_per_step` epochs takes the last step
    when it ends and is complete; epochs beyond it train biases and whatever else is not quantised.
    A complete fit leaves the model as it was, with other weights. One that stops earlier leaves its
    state in the model (`.keras` files and `BackupAndRestore` carry it), and the next `fit` with
    this callback goes on. Callbacks that put back weights at the end (`EarlyStopping`) go before
    this one.

    What it buys: each kernel holds at most `2^(bits - 1) + 1` values. In a .tflite those of 3 and 4
    bits are exact int8 (`kc.quantizers.apply(model, PowerOfTwo(bits))`); LiteRT has no shift
    kernels.

    Args:
        quantizer: `kc.quantizers.PowerOfTwo` of one term, or its name.
        portions: Quantised share of each kernel after each step, increasing, the last one 1.
        epochs_per_step: Epochs of retraining after each step.
        layers: Keys (layer name, glob, class or predicate) of the layers to quantise. By default
            every trainable layer with a kernel; embeddings only if named.

    Raises:
        ValueError: for arguments that do not make sense; at the start of `fit`, for a key that fits
            no layer or a model that has no weights yet.

    Reference:
        A. Zhou, A. Yao, Y. Guo, L. Xu, Y. Chen, "Incremental Network Quantization: Towards Lossless
        CNNs with Low-Precision Weights", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> inq = kc.callbacks.IncrementalQuantization(
    ...     kc.quantizers.PowerOfTwo(bits=3), portions=(0.5, 1.0), epochs_per_step=1
    ... )
    >>> history = model.fit(
    ...     np.random.rand(64, 16), np.random.rand(64, 1), epochs=2, callbacks=[inq], verbose=0
    ... )
    >>> len(np.unique(np.abs(keras.ops.convert_to_numpy(model.layers[0].kernel)))) <= 3
    True
    """

    def __init__(
        self,
        quantizer="power_of_two",
        portions=(0.5, 0.75, 0.875, 1.0),
        epochs_per_step=4,
        layers=None,
    ):
        super().__init__()
        self.quantizer = get_quantizer(quantizer)
        if not isinstance(self.quantizer, PowerOfTwo) or self.quantizer.terms != 1:
            raise ValueError(
                "IncrementalQuantization: `quantizer` must be a PowerOfTwo of one term, such as "
                f"PowerOfTwo(bits=5); got quantizer={quantizer!r}."
            )
        self.portions = _portions(portions, self)
        self.epochs_per_step = validation.positive_int("epochs_per_step", epochs_per_step, self)
        if isinstance(layers, (str, type)) or callable(layers):
            layers = (layers,)
        if layers is not None and not hasattr(layers, "__iter__"):
            raise ValueError(
                "IncrementalQuantization: `layers` must be a list of layer names, globs, classes "
                f"or predicates; got layers={layers!r}."
            )
        self.layers = None if layers is None else tuple(layers)
        self._kernels = []

    def set_model(self, model):
        super().set_model(model)
        unbuilt = [layer.name for layer in unbuilt_layers(model)]
        if not model.built or unbuilt:
            raise ValueError(
                f"IncrementalQuantization: model '{model.name}' has layers without weights "
                f"({', '.join(unbuilt) or 'all'}); call the model on a batch before fit()."
            )
        self._kernels = kernels_of(model, self.layers, "IncrementalQuantization")
        with variable_scope(self.model):
            self._constraints = [_install(kernel) for kernel in self._kernels]
        # A step compiled earlier has the old constraints in it.
        model.train_function = None
        carry_masks(model)
        self._warned = False

    @property
    def _last_start(self):
        return (len(self.portions) - 1) * self.epochs_per_step

    # Epochs are counted as they begin: BackupAndRestore then saves the same count, whether it
    # comes before this callback or after.

    def on_epoch_begin(self, epoch, logs=None):
        begun = min(_number(constraint.epochs) for constraint in self._constraints)
        left = ((self.params or {}).get("epochs") or np.inf) - epoch
        if not self._warned and begun + left < self._last_start:
            self._warned = True
            warnings.warn(
                f"Incremental quantization needs {self._last_start - begun:.0f} epochs, but this "
                f"fit() has {left}: some weights stay float unless you fit further with this "
                "callback. Use fewer `epochs_per_step`, or more epochs.",
                stacklevel=2,
            )
        with variable_scope(self.model):
            for kernel, constraint in zip(self._kernels, self._constraints, strict=True):
                begun = int(_number(constraint.epochs))
                step = min(begun // self.epochs_per_step, len(self.portions) - 1)
                self._quantize(kernel.variable, constraint, self.portions[step])
                constraint.epochs.assign(begun + 1)

    def _quantize(self, variable, constraint, portion):
        """Quantises and freezes the largest free weights, up to a portion of all."""
        weights = _array(variable)
        if not _number(constraint.scale):
            constraint.scale.assign(_array(self.quantizer.scales(weights)).reshape(()))
        frozen = _array(constraint.frozen).copy()
        free = np.isnan(frozen)
        missing = int(portion * free.size + 0.5) - int((~free).sum())
        if missing > 0:
            ranked = np.argsort(np.where(free, -np.abs(weights), np.inf), axis=None, kind="stable")
            new = np.unravel_index(ranked[:missing], frozen.shape)
            scale = np.float32(_number(constraint.scale))
            levels = self.quantizer.quantize(keras.ops.convert_to_tensor(weights), scales=scale)
            frozen[new] = _array(levels)[new]
            constraint.freeze(frozen)
        _restore(variable, frozen)

    def on_train_end(self, logs=None):
        complete = all(_number(c.epochs) >= self._last_start for c in self._constraints)
        with variable_scope(self.model):
            for kernel, constraint in zip(self._kernels, self._constraints, strict=True):
                # An optimizer with a moving average of weights has just written that over them.
                _restore(kernel.variable, _array(constraint.frozen))
                if complete:
                    self._quantize(kernel.variable, constraint, 1.0)
                    _uninstall(kernel, constraint)
        if complete:
            self.model.train_function = None


def _install(kernel):
    """Puts `FrozenWeights` on a kernel, or finds those that an unfinished fit has left."""
    before = getattr(kernel.layer, kernel.constraint_attribute)
    if isinstance(before, FrozenWeights):
        constraint = before
    else:
        constraint = FrozenWeights(kernel.variable.shape, constraint=before)
    kernel.set_constraint(constraint)
    return constraint


def _uninstall(kernel, constraint):
    kernel.set_constraint(constraint.constraint)
    kernel.layer._tracker.untrack(constraint)


def _restore(variable, frozen):
    variable.assign(np.where(np.isnan(frozen), _array(variable), frozen))


def _array(variable):
    return keras.ops.convert_to_numpy(variable).astype("float32")


def _number(variable):
    return float(keras.ops.convert_to_numpy(variable))


def _portions(portions, owner):
    rule = "must be increasing shares of the weights that end at 1, such as (0.5, 0.75, 1.0)"
    if isinstance(portions, str) or not hasattr(portions, "__iter__"):
        raise ValueError(f"{validation.prefix(owner)}`portions` {rule}; got portions={portions!r}.")
    shares = tuple(
        validation.number(f"portions[{i}]", share, 0, 1, low_open=True, owner=owner)
        for i, share in enumerate(portions)
    )
    if not shares or shares[-1] != 1 or (np.diff(shares) <= 0).any():
        raise ValueError(f"{validation.prefix(owner)}`portions` {rule}; got portions={portions!r}.")
    return shares
