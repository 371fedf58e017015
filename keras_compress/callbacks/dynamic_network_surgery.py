"""`DynamicNetworkSurgery`: pruned weights that can come back, while `fit` runs."""

import numpy as np

from keras_compress import validation
from keras_compress.callbacks.mask_callback import MaskCallback, to_numpy
from keras_compress.callbacks.surgery_mask import MaskUpdates, SurgeryMask, carry_surgery
from keras_compress.pruning.prunable import kernels_of, trained_model
from keras_compress.pruning.pruning_mask import PruningMask
from keras_compress.pruning.strip import strip


class DynamicNetworkSurgery(MaskCallback):
    """Prunes small weights during `fit`, and splices those back that grow again.

    Layers compute with masked weights `W * T`, but all `W` are trained, each by the gradient of the
    masked one: `W <- W - lr dL/d(W * T)`. A weight with `|W| < a` is pruned, one with `|W| >= b`
    kept (spliced back, if it was pruned), and between the two it stays as it is. With m = mean +
    `c_rate` * std of a layer's `|W|` at the start, `a = 0.9 m` and `b = 1.1 m`. Masks are chosen
    anew with probability `(1 + gamma * step)^-power`, less and less often.

    All of that happens inside the compiled training step; the callback does nothing in a batch.
    The layer's variable holds `W * T` at any time, with exact zeros, so that evaluation and export
    need no care. Masks and the `W` of pruned weights are part of the model: `.keras` files and
    `BackupAndRestore` carry them. Trained without this callback, a mask stays as it is;
    `finalize()` gives the plain pruned model. Weight decay acts on `W * T`.

    The share of zeros in all pruned weights is logged as `sparsity` at the end of each epoch.

    Args:
        c_rate: Number, larger for more zeros: with 1 about 80 % of a layer's weights, if they are
            normally distributed. Or a dict from a key (layer name, glob, class or predicate) to
            such a number, for the layers that its keys choose; the first that fits counts.
        gamma: How fast masks come to rest, >= 0; 0: they are chosen anew after every batch.
        power: Likewise, >= 0.
        stop_step: Number of training batches after which masks stay as they are and only weights
            are trained; `None` for no such end.
        layers: Keys of the layers to prune, where `c_rate` is a number. By default every trainable
            layer with a kernel; embeddings only if named.
        seed: Seed of the draws.

    Raises:
        ValueError: for arguments that do not make sense; at the start of `fit`, for a key that fits
            no layer, a model that has no weights yet or is under another pruning mask, and for a
            `c_rate` at which a layer would lose all of its weights.

    Reference:
        Y. Guo, A. Yao, Y. Chen, "Dynamic Network Surgery for Efficient DNNs", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y = np.random.rand(64, 16), np.random.rand(64, 1)
    >>> surgery = kc.callbacks.DynamicNetworkSurgery(c_rate=0.5)
    >>> history = model.fit(x, y, epochs=2, callbacks=[surgery], verbose=0)
    >>> plain = surgery.finalize()
    >>> zeros = np.mean(keras.ops.convert_to_numpy(plain.layers[0].kernel) == 0)
    >>> bool(zeros > 0.3), len(plain.weights)
    (True, 4)
    """

    def __init__(self, c_rate, gamma=1e-4, power=1, stop_step=None, layers=None, seed=0):
        super().__init__()
        self.c_rate = _rates(c_rate, layers, self)
        self.gamma = validation.number("gamma", gamma, 0, owner=self)
        self.power = validation.number("power", power, 0, owner=self)
        if stop_step is not None:
            stop_step = validation.positive_int("stop_step", stop_step, self)
        self.stop_step = stop_step
        self.seed = validation.seed(seed)

    def set_model(self, model):
        super().set_model(model)
        keys = None if None in self.c_rate else list(self.c_rate)
        kernels = kernels_of(trained_model(model, self), keys, "DynamicNetworkSurgery")
        starts = [self._start(kernel) for kernel in kernels]
        with self.scope():
            self.pruned = [(kernel, kernel.install_mask(SurgeryMask)[0]) for kernel in kernels]
            # BackupAndRestore, which comes later, brings back the thresholds that it has saved.
            for (_, mask), start in zip(self.pruned, starts, strict=True):
                if start is not None:
                    mask.start(*start)
        for index, (_, mask) in enumerate(self.pruned):
            mask.updates = MaskUpdates(self.gamma, self.power, self.stop_step, self.seed + index)
        # A step compiled earlier has other constraints in it.
        model.train_function = None
        carry_surgery(model)

    def _start(self, kernel):
        """Thresholds and rate for a kernel, or `None` if an earlier fit has set them."""
        mask = getattr(kernel.layer, kernel.constraint_attribute)
        rate = next(r for key, r in self.c_rate.items() if key is None or kernel.matches(key))
        weights = to_numpy(kernel.variable)
        if isinstance(mask, SurgeryMask):
            if mask.started(rate):
                return None
            weights = np.where(mask.read_mask(), weights, to_numpy(mask.latent))
        elif isinstance(mask, PruningMask):
            raise ValueError(
                f"DynamicNetworkSurgery: '{kernel.name}' is under the mask of another callback, "
                "from which no weight comes back. Take it off first: kc.pruning.strip(model)."
            )
        # Zeros that an earlier pruning has left say nothing about the size of weights.
        sizes = np.abs(weights[weights != 0])
        middle = max(sizes.mean() + rate * sizes.std(), 0.0) if sizes.size else 0.0
        if not sizes.size or sizes.max() < 0.9 * middle:
            raise ValueError(
                f"DynamicNetworkSurgery: with c_rate={rate:g}, '{kernel.name}' would lose all of "
                f"its weights: those below {0.9 * middle:.3g} go, and the largest is "
                f"{sizes.max(initial=0):.3g}. Use a smaller c_rate."
            )
        return 0.9 * middle, 1.1 * middle, rate

    def on_train_end(self, logs=None):
        self.apply_masks()
        for _, mask in self.pruned:
            mask.updates = None
            mask.note_mask()
        self.model.train_function = None

    def finalize(self, model=None):
        """Returns the pruned model without masks; see `kc.pruning.strip`.

        Args:
            model: The model, pruned by this callback; `None` for the one that was fitted last.

        Returns:
            A new model with exact zeros for pruned weights, compiled like `model`.
        """
        if model is None and not self.pruned:
            raise ValueError(
                "DynamicNetworkSurgery: finalize() comes after a fit() with this callback."
            )
        return strip(trained_model(self.model if model is None else model, self))


def _rates(c_rate, layers, owner):
    """Dict from keys to rates; the key `None` stands for every layer."""
    if not isinstance(c_rate, dict):
        rate = validation.number("c_rate", c_rate, owner=owner)
        if layers is None:
            return {None: rate}
        keys = [layers] if isinstance(layers, (str, type)) or callable(layers) else list(layers)
        return dict.fromkeys(keys, rate)
    if layers is not None or not c_rate:
        raise ValueError(
            "DynamicNetworkSurgery: the keys of a dict `c_rate` choose the layers; give at least "
            f"one, and no `layers`; got c_rate={c_rate!r}, layers={layers!r}."
        )
    return {
        key: validation.number(f"c_rate[{key!r}]", rate, owner=owner)
        for key, rate in c_rate.items()
    }
