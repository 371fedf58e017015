"""`ristretto`: the fewest bits of each layer's weights and inputs that accuracy allows."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.convert import check_graph, convert
from keras_compress.quantizers.fixed_point import FixedPoint
from keras_compress.quantizers.minifloat import Minifloat
from keras_compress.quantizers.post_training import QUANT_LAYERS, choose_layers
from keras_compress.quantizers.power_of_two import PowerOfTwo
from keras_compress.quantizers.search_step import checked_pair
from keras_compress.tables import Table

KINDS = ("dynamic_fixed_point", "minifloat", "power_of_two")

#: Widths that are searched: of fixed point and minifloat, and of powers of two.
_FIXED, _MINIFLOAT, _POWERS = (2, 16), (5, 15), (2, 7)
#: Bits of a minifloat's exponent, more only where values are larger than it holds.
_EXPONENT = 4
_BATCH = 256
_LARGER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "iou", "similarity", "r2")


@dataclasses.dataclass(frozen=True)
class RistrettoRow:
    """What was found for one layer.

    Attributes:
        name: Name of the layer.
        weight_bits: Bits of a weight.
        input_bits: Bits of an input, which are outputs of the layers in front of it.
        kernel_quantizer: Quantizer of the weights.
        input_quantizer: Quantizer of the inputs.
        parameters: Number of weights of the kernel.
        largest_weight: Largest magnitude of a weight.
        largest_input: Largest magnitude of an input on the analysis data.
        largest_output: Largest magnitude of an output on the analysis data.
    """

    name: str
    weight_bits: int
    input_bits: int
    kernel_quantizer: object
    input_quantizer: object
    parameters: int
    largest_weight: float
    largest_input: float
    largest_output: float


class Ristretto:
    """What `ristretto` returns: prints as text, shows as HTML in a notebook.

    Attributes:
        model: The quantised model: Quant layers with the trained kernels as float shadow weights.
            Fine-tune it with `fit`.
        rows: A `RistrettoRow` for each quantised layer.
        quantize: Dict from layer names to `"int4"`, `"int8"`, `"dynamic"` or `None`: for
            `kc.export.to_tflite(model, quantize=...)`, of the float model.
        metric: Name of what was measured.
        float_score: Its value for the float model.
        score: Its value for the quantised one.
        limit: The worst value that the tolerance allows.
        evaluations: How often the network was evaluated.
    """

    def __init__(self, model, rows, quantize, score, limit, float_score, metric, evaluations):
        self.model = model
        self.rows = list(rows)
        self.quantize = quantize
        self.score = score
        self.limit = limit
        self.float_score = float_score
        self.metric = metric
        self.evaluations = evaluations

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, name):
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no layer {name!r}; there are {[row.name for row in self.rows]}")

    def table(self):
        """The rows as a `Table` of formatted cells."""
        header = [
            "layer",
            "weights",
            "weight bits",
            "weight format",
            "input bits",
            "input format",
            "max input",
            "max output",
            "exports as",
        ]
        body = [
            [
                row.name,
                f"{row.parameters:,}",
                row.weight_bits,
                _format(row.kernel_quantizer),
                row.input_bits,
                _format(row.input_quantizer),
                f"{row.largest_input:.3g}",
                f"{row.largest_output:.3g}",
                self.quantize[row.name] or "float32",
            ]
            for row in self.rows
        ]
        title = f"{self.metric}: {self.float_score:.4f} float, {self.score:.4f} quantised"
        return Table(header, body, align="<>><><>><", title=title)

    def __repr__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def ristretto(
    model,
    data,
    tolerance=0.01,
    kind="dynamic_fixed_point",
    rounding="nearest",
    layers=None,
    verbose=1,
):
    """Finds the fewest bits of each layer's weights and inputs that an accuracy budget allows.

    1. The float model runs on the data once: the largest weight, input and output of each layer.
    2. Each layer's weights, and each layer's inputs, alone and all else in float: the lowest width
       within the tolerance, by halving.
    3. All together. While that breaks the tolerance, every width grows by one bit; then one after
       the other, those of the largest layers first, shrinks as long as the tolerance holds, until
       in the result each width one lower breaks it.

    Formats, by `kind`:

    - `"dynamic_fixed_point"`: `FixedPoint(b, b - IL)` for weights and inputs, 2 to 16 bits. The
      integer length is the paper's, `IL = ceil(log2(max) + 1)`, one more where the largest value
      would round past the last code: nothing of the analysis data saturates.
    - `"minifloat"`: `Minifloat(e, b - 1 - e)`, with 4 bits of exponent, or more where values are
      larger than it holds; 5 to 15 bits.
    - `"power_of_two"`: weights `PowerOfTwo(b)` of 2 to 7 bits, inputs in dynamic fixed point.

    What is measured is the first metric that the model is compiled with, else accuracy (labels as
    integers or one-hot). Of one that is better the larger it is (accuracy), `tolerance` is the
    absolute loss; of an error, the share that it may grow by.

    Outputs have no width of their own: they are the inputs of the layers behind, rounded there.

    Args:
        model: A built Sequential or functional model with one output, nested ones included. It is
            not changed. Its Dense, Conv2D and DepthwiseConv2D layers are quantised.
        data: `(x, y)`, samples to find ranges and measure on, such as those of validation.
        tolerance: Loss that is allowed, from 0.
        kind: `"dynamic_fixed_point"`, `"minifloat"` or `"power_of_two"`.
        rounding: Of fixed-point weights in fine-tuning: `"nearest"` or `"stochastic"`. What is
            measured is the nearest.
        layers: The layers to quantise: a key, or a list of keys (layer names, globs, layer classes
            or predicates); `None` for every layer that has a Quant form.
        verbose: 1 shows progress, 0 nothing.

    Returns:
        A `Ristretto`: bits by layer, table, the quantised model, and what to give to
        `kc.export.to_tflite(model, quantize=...)`.

    Raises:
        ValueError: if an argument is not one of these, no layer has a Quant form, the model has
            several outputs, data is empty or not finite, or the widest format breaks the tolerance.

    Reference:
        Gysel, Motamedi, Ghiasi, "Hardware-oriented Approximation of Convolutional Neural
        Networks", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="fc")])
    >>> x = np.random.default_rng(0).normal(size=(200, 8)).astype("float32")
    >>> y = model.predict(x, verbose=0).argmax(-1)
    >>> found = ristretto(model, (x, y), tolerance=0.1, verbose=0)
    >>> found.score >= 0.9 and found["fc"].weight_bits < 8
    True
    """
    check_graph(model, "ristretto")
    tolerance = validation.number("tolerance", tolerance, 0, owner="ristretto")
    validation.one_of("kind", kind, KINDS, "ristretto")
    validation.one_of("rounding", rounding, ("nearest", "stochastic"), "ristretto")
    chosen = _choose(model, layers)
    data = checked_pair(data, "ristretto")
    if len(model.outputs) != 1:
        raise ValueError(
            f"ristretto: model '{model.name}' has {len(model.outputs)} outputs, and accuracy is of "
            "one. Give keras.Model(model.inputs, one output)."
        )
    network = _Network(model, chosen, kind, rounding, data, tolerance, verbose)
    widths = network.search()
    rows = [
        RistrettoRow(
            name=layer.name,
            weight_bits=widths[number, "weights"],
            input_bits=widths[number, "inputs"],
            kernel_quantizer=network.quantizer((number, "weights"), widths),
            input_quantizer=network.quantizer((number, "inputs"), widths),
            parameters=math.prod(layer.kernel.shape),
            largest_weight=network.largest[number, "weights"],
            largest_input=network.largest[number, "inputs"],
            largest_output=network.largest[number, "outputs"],
        )
        for number, layer in enumerate(chosen)
    ]
    made = {
        id(layer): QUANT_LAYERS[type(layer)].from_layer(
            layer, kernel_quantizer=row.kernel_quantizer, input_quantizer=row.input_quantizer
        )
        for layer, row in zip(chosen, rows, strict=True)
    }
    quantised = convert(model, {lambda layer: id(layer) in made: lambda layer: made[id(layer)]})
    return Ristretto(
        quantised,
        rows,
        {row.name: _mode(layer, row) for layer, row in zip(chosen, rows, strict=True)},
        score=network.scores[tuple(widths.items())],
        limit=network.limit,
        float_score=network.float_score,
        metric=network.metric,
        evaluations=network.evaluations,
    )


class _Network:
    """A copy of a model whose formats change between evaluations.

    Widths are a dict from `(number of the layer, "weights" or "inputs")` to bits; what is not in
    it is float.
    """

    def __init__(self, model, layers, kind, rounding, data, tolerance, verbose):
        self.kind = kind
        self.rounding = rounding
        self.x, self.y = data
        self.evaluations = 0
        self.scores = {}
        self.progress = keras.utils.Progbar(None, verbose=verbose, unit_name="evaluation")
        self.verbose = verbose
        # Eager, with quantizers that are swapped: each new format would be a new graph.
        self.layers = [QUANT_LAYERS[type(layer)].from_layer(layer) for layer in layers]
        copies = {id(old): new for old, new in zip(layers, self.layers, strict=True)}
        rules = {lambda layer: id(layer) in copies: lambda layer: copies[id(layer)]}
        self.model = convert(model, rules)
        self.largest = self._ranges()
        self.metric, self._measure, larger = self._find_metric()
        self.larger_is_better = larger
        self.float_score = self.score({})
        loss = tolerance if larger else tolerance * abs(self.float_score)
        self.limit = self.float_score - loss if larger else self.float_score + loss

    def _ranges(self):
        """Largest magnitudes, by layer and kind, in one pass over the data."""
        largest = {}
        for number, layer in enumerate(self.layers):
            largest[number, "weights"] = float(ops.max(ops.abs(layer.kernel)))
            largest[number, "inputs"] = largest[number, "outputs"] = 0.0
            layer.call = _watched(layer.call, largest, number)
        self.outputs({})
        for layer in self.layers:
            del vars(layer)["call"]
        for (number, what), value in largest.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"ristretto: the {what} of layer '{self.layers[number].name}' are not finite "
                    "in the float model: it has no ranges to fit. Restore weights from before they "
                    "diverged, or leave out the samples that overflow."
                )
        return largest

    def _find_metric(self):
        """`(name, function of the outputs, whether larger is better)`."""
        outputs = self.outputs({})
        if getattr(self.model, "compiled", False):
            found = self._compiled(outputs)
            name = next((name for name in found if name != "loss"), None)
            if name is not None:
                larger = any(word in name.lower() for word in _LARGER_IS_BETTER)
                return name, lambda outputs: self._compiled(outputs)[name], larger
        labels = np.asarray(self.y)
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            if labels.shape == outputs.shape:
                labels = labels.argmax(-1)
            labels = labels.reshape(len(labels), -1)
            if labels.shape[1] == 1 and np.array_equal(labels, labels.astype("int64")):
                labels = labels[:, 0]
                return "accuracy", lambda o: float(np.mean(o.argmax(-1) == labels)), True
        raise ValueError(
            f"ristretto: accuracy takes outputs (samples, classes) and a label each; got outputs "
            f"{outputs.shape} and y {labels.shape}. Compile the model with the metric to measure, "
            'such as model.compile(loss="mse", metrics=["mae"]).'
        )

    def _compiled(self, outputs):
        self.model.reset_metrics()
        self.model.compute_metrics(self.x, ops.convert_to_tensor(self.y), outputs)
        return {name: float(value) for name, value in self.model.get_metrics_result().items()}

    def quantizer(self, place, widths):
        """The quantizer of one place with its width, or `None` for float."""
        bits = widths.get(place)
        if bits is None:
            return None
        of_weights = place[1] == "weights"
        if self.kind == "power_of_two" and of_weights:
            return PowerOfTwo(bits)
        if self.kind == "minifloat":
            exponent = exponent_bits(self.largest[place])
            return Minifloat(exponent, bits - 1 - exponent)
        rounding = self.rounding if of_weights else "nearest"
        return FixedPoint(bits, fractional_length(self.largest[place], bits), rounding)

    def limits(self, place):
        """Lowest and highest width of a place."""
        if self.kind == "power_of_two" and place[1] == "weights":
            return _POWERS
        if self.kind == "minifloat":
            more = exponent_bits(self.largest[place]) - _EXPONENT
            return _MINIFLOAT[0] + more, _MINIFLOAT[1] + more
        return _FIXED

    def outputs(self, widths):
        """Outputs of the network on the data."""
        for number, layer in enumerate(self.layers):
            layer.kernel_quantizer = self.quantizer((number, "weights"), widths)
            layer.input_quantizer = self.quantizer((number, "inputs"), widths)
        count = len(self.y)
        parts = [
            ops.convert_to_numpy(
                self.model(
                    keras.tree.map_structure(lambda a, s=start: a[s : s + _BATCH], self.x),
                    training=False,
                )
            )
            for start in range(0, count, _BATCH)
        ]
        return np.concatenate(parts)

    def score(self, widths):
        """The metric with these widths."""
        key = tuple(widths.items())
        if key not in self.scores:
            self.scores[key] = self._measure(self.outputs(widths))
            self.evaluations += 1
            if self.verbose:
                self.progress.update(self.evaluations, [(self.metric, self.scores[key])])
        return self.scores[key]

    def holds(self, widths):
        """Whether widths are within the tolerance."""
        score = self.score(widths)
        # A NaN is not.
        return score >= self.limit if self.larger_is_better else score <= self.limit

    def search(self):
        """Widths each of which breaks the tolerance if it is one lower."""
        places = [(n, what) for n in range(len(self.layers)) for what in ("weights", "inputs")]
        if not math.isfinite(self.float_score):
            raise ValueError(
                f"ristretto: the {self.metric} of model '{self.model.name}' is {self.float_score}; "
                "look for NaN in its weights."
            )
        widths = {place: self._alone(place) for place in places}
        while not self.holds(widths):
            wider = {place: min(b + 1, self.limits(place)[1]) for place, b in widths.items()}
            if wider == widths:
                raise ValueError(
                    f"ristretto: the widest formats of kind={self.kind!r} give {self.metric} "
                    f"{self.score(widths):.4g}, and tolerance allows {self.limit:.4g}. Allow more, "
                    "leave layers out (layers=), or take another kind."
                )
            widths = wider
        places.sort(key=lambda place: -math.prod(self.layers[place[0]].kernel.shape))
        shrunk = True
        while shrunk:
            shrunk = False
            for place in places:
                while widths[place] > self.limits(place)[0]:
                    lower = {**widths, place: widths[place] - 1}
                    if not self.holds(lower):
                        break
                    widths, shrunk = lower, True
        if self.verbose:
            self.progress.update(self.evaluations, finalize=True)
        return widths

    def _alone(self, place):
        """Lowest width of one place within the tolerance, all else in float."""
        low, high = self.limits(place)
        while low < high:
            middle = (low + high) // 2
            if self.holds({place: middle}):
                high = middle
            else:
                low = middle + 1
        return high


def fractional_length(largest, bits):
    """Bits after the point of the finest fixed point of `bits` bits that holds a magnitude.

    The integer length is `ceil(log2(largest) + 1)`, or one more if rounding would take `largest`
    past the last code.

    Args:
        largest: Largest magnitude.
        bits: Bits of a value, sign included.
    """
    if largest == 0:
        return 0
    frac = bits - math.ceil(math.log2(largest) + 1)
    # In the arithmetic of the quantizer, float32 and ties to even.
    while np.round(np.float32(largest) * np.float32(2.0**frac)) > 2 ** (bits - 1) - 1:
        frac -= 1
    return max(-32, min(32, frac))


def exponent_bits(largest):
    """Bits of the exponent of a minifloat that holds a magnitude: 4, or more where it needs them.

    Args:
        largest: Largest magnitude.
    """
    bits = _EXPONENT
    # Without a mantissa, whose largest value is the smallest.
    while bits < 6 and Minifloat(bits, 0).largest < largest:
        bits += 1
    return bits


def _mode(layer, row):
    """What `to_tflite` makes of a layer with these widths."""
    if row.weight_bits > 8:
        return None
    if row.input_bits > 8:
        # int8 inputs on one scale would lose more; on the fly each sample has its own.
        return "dynamic"
    return "int4" if type(layer) is keras.layers.Dense and row.weight_bits <= 4 else "int8"


def _choose(model, keys):
    """Layers with one kernel that have a Quant form, as `keys` choose them."""
    chosen = choose_layers(model, keys, "ristretto")
    double = [layer.name for layer in chosen if not hasattr(layer, "kernel")]
    if double and (keys is not None or len(double) == len(chosen)):
        raise ValueError(
            f"ristretto: layers {', '.join(map(repr, double))} have two kernels, and inputs "
            "between them that no width is searched for. Split each into a DepthwiseConv2D and a "
            "1x1 Conv2D, or leave them out."
        )
    return [layer for layer in chosen if hasattr(layer, "kernel")]


def _format(quantizer):
    if isinstance(quantizer, FixedPoint):
        return f"<{quantizer.word - quantizer.frac}.{quantizer.frac}>"
    if isinstance(quantizer, Minifloat):
        return f"e{quantizer.exponent}m{quantizer.mantissa}"
    return "power of two"


def _watched(call, largest, number):
    """A layer's `call` that keeps the largest magnitudes of its inputs and outputs."""

    def watched(inputs, training=None):
        outputs = call(inputs, training)
        for what, values in (("inputs", inputs), ("outputs", outputs)):
            seen = float(ops.max(ops.abs(values)))
            # Not `max()`, which drops a NaN.
            largest[number, what] = float(np.maximum(largest[number, what], seen))
        return outputs

    return watched
