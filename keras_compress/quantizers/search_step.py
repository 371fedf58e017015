"""SearchStep: steps of quantised kernels that cost the network least, layer by layer."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from keras_compress import matching, validation
from keras_compress.convert import check_graph, convert
from keras_compress.layers.quantized_kernel import QuantizedKernel
from keras_compress.quantizers.uniform_l2 import UniformL2
from keras_compress.tables import Table

FACTORS = (0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3, 1.4)


@dataclasses.dataclass(frozen=True)
class StepRow:
    """What the search did to one layer.

    Attributes:
        name: Name of the layer.
        fitted: Step that the search started from: the one of the least squared error.
        step: Step of the least loss.
        loss_before: Loss of the network with `fitted`.
        loss: Loss of the network with `step`.
    """

    name: str
    fitted: float
    step: float
    loss_before: float
    loss: float


class SearchStep:
    """Exhaustive search of the steps of `UniformL2` kernels by the loss of the network.

    The step that `UniformL2` fits has the least squared error of the weights, which is not quite
    what the network loses least with. One layer after the other, in the order of the model, tries
    multiples of its fitted step while all others hold theirs, and keeps the one with the least loss
    on `data`; the loss never rises. The steps found are fixed: train the result further, as the
    paper does, and they stay.

    A model of L layers is evaluated `1 + L * len(factors)` times. Layers whose quantizer has a step
    for each channel (`axis=-1`) or is another one are left as they are.

    Args:
        model: A built Sequential or functional model, nested ones included, with Quant layers of
            `kernel_quantizer=UniformL2(levels)`, such as `kc.quantizers.apply` gives. It is not
            changed.
        data: `(x, y)`, samples to measure the loss on, such as those of validation.
        loss: A Keras loss, its name or a function `(y_true, y_pred)`; `None` for the one that the
            model is compiled with.
        factors: Multiples of the fitted step to try; the fitted step itself always is.

    Attributes:
        rows: A `StepRow` for each layer, once `search` has run.

    Raises:
        ValueError: if there is no such layer, no loss, no sample or one that is not finite, a
            factor is not positive, or (in `search`) the loss is not finite.

    Reference:
        Hwang, Sung, "Fixed-point feedforward deep neural network design using weights +1, 0, and
        -1", 2014.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, name="fc")])
    >>> x = np.random.default_rng(0).normal(size=(100, 64)).astype("float32")
    >>> y = model.predict(x, verbose=0)
    >>> ternary = kc.quantizers.apply(model, kc.quantizers.UniformL2(3))
    >>> search = SearchStep(ternary, (x, y), loss="mse")
    >>> better = search.search()
    >>> better.get_layer("fc").kernel_quantizer.step == search.rows[0].step
    True
    """

    def __init__(self, model, data, loss=None, factors=FACTORS):
        check_graph(model, "SearchStep")
        self.model = model
        self.layers = [layer for layer in matching.leaf_layers(model) if _is_searched(layer)]
        if not self.layers:
            raise ValueError(
                f"SearchStep: model '{model.name}' has no Quant layer whose kernel_quantizer is a "
                "UniformL2 with axis=None. Make one by kc.quantizers.apply(model, "
                "kc.quantizers.UniformL2(3))."
            )
        self.x, self.y = checked_pair(data, "SearchStep")
        self.loss = _loss(model, loss)
        self.factors = [
            validation.number(f"factors[{i}]", factor, 0, low_open=True, owner=self)
            for i, factor in enumerate(factors)
        ]
        self.rows = []

    def search(self):
        """Searches the steps, and returns a copy of the model that has them.

        Raises:
            ValueError: if the loss of the network is not finite.
        """
        # Kernels are quantised outside, for layers that do so no more: one trace serves all.
        trials = {id(layer): _copy(layer, None) for layer in self.layers}
        network = self._with(trials)

        def assign(layer, quantizer):
            trials[id(layer)].kernel.assign(quantizer.encode(layer.kernel).decode())

        for layer in self.layers:
            assign(layer, layer.kernel_quantizer)
        best = self._loss_of(network)
        if not math.isfinite(best):
            raise ValueError(
                f"SearchStep: the loss of model '{self.model.name}' is {best}; look for NaN in "
                "its weights."
            )
        rows, searched = [], {}
        for layer in self.layers:
            before = best
            fitted = chosen = float(layer.kernel_quantizer.encode(layer.kernel).scale)
            for step in [factor * fitted for factor in self.factors]:
                assign(layer, _with_step(layer, step))
                loss = self._loss_of(network)
                if loss < best:
                    best, chosen = loss, step
            found = _with_step(layer, chosen)
            assign(layer, found)
            searched[id(layer)] = _copy(layer, found)
            rows.append(StepRow(layer.name, fitted, chosen, before, best))
        self.rows = rows
        return self._with(searched)

    def _with(self, layers):
        """A copy of the model with other layers, by `id` of those that they replace."""
        rules = {lambda layer: id(layer) in layers: lambda layer: layers[id(layer)]}
        return convert(self.model, rules)

    def _loss_of(self, network):
        outputs = network.predict(self.x, verbose=0)
        return float(np.mean(ops.convert_to_numpy(self.loss(self.y, outputs))))

    def table(self):
        """The rows as a `Table` of formatted cells."""
        body = [
            [
                row.name,
                f"{row.fitted:.4g}",
                f"{row.step:.4g}",
                f"{row.step / row.fitted:.2f}",
                f"{row.loss_before:.4g}",
                f"{row.loss:.4g}",
            ]
            for row in self.rows
        ]
        return Table(["layer", "fitted step", "step", "ratio", "loss before", "loss"], body)

    def __repr__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def _is_searched(layer):
    quantizer = getattr(layer, "kernel_quantizer", None)
    return (
        isinstance(layer, QuantizedKernel)
        and isinstance(quantizer, UniformL2)
        and quantizer.axis is None
    )


def _with_step(layer, step):
    quantizer = layer.kernel_quantizer
    return type(quantizer).from_config({**quantizer.get_config(), "step": step})


def _copy(layer, kernel_quantizer):
    """A layer with the weights of another and another quantizer of the kernel."""
    new = type(layer).from_config({**layer.get_config(), "kernel_quantizer": kernel_quantizer})
    new.build_from_config(layer.get_build_config())
    new.set_weights(layer.get_weights())
    return new


def checked_pair(data, caller):
    """Returns `(x, y)`, or raises `ValueError` if it is no pair of finite samples, as many each.

    Args:
        data: Anything.
        caller: Name of the function or class that errors speak for.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            f"{caller}: `data` must be a pair (x, y); got {type(data).__name__}"
            f"{f' of {len(data)}' if isinstance(data, (tuple, list)) else ''}."
        )
    x, y = data
    arrays = [np.asarray(array) for array in (*keras.tree.flatten(x), y)]
    counts = {len(array) for array in arrays}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(
            f"{caller}: `data` must be at least one sample, x and y the same number; got "
            f"{sorted(counts)}."
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(
            f"{caller}: `data` has values that are not finite (NaN or infinity); leave those "
            "samples out."
        )
    return x, arrays[-1]


def _loss(model, loss):
    loss = getattr(model, "loss", None) if loss is None else loss
    if loss is None or isinstance(loss, (list, dict)):
        raise ValueError(
            f"SearchStep: model '{model.name}' is not compiled with one loss; got loss={loss!r}. "
            'Give `loss`, such as loss="sparse_categorical_crossentropy".'
        )
    return keras.losses.get(loss)
