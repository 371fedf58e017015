"""`LatencyTable`: how long each layer of a model takes on LiteRT, by its numbers of channels."""

import dataclasses
import json
import pathlib

import keras
import numpy as np

from keras_compress import validation
from keras_compress.call_graph import CallGraph
from keras_compress.convert import check_graph, new_like
from keras_compress.export import time_together, to_tflite
from keras_compress.files import write_atomically
from keras_compress.tables import Table

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


@dataclasses.dataclass(frozen=True)
class LayerLatency:
    """Seconds of one layer alone, on a grid of widths.

    Attributes:
        name: Name of the layer, with those of the models around it.
        inputs: Rising numbers of input channels.
        outputs: Rising numbers of output channels; one for a depthwise layer, which follows its
            inputs.
        seconds: Array `(inputs, outputs)`.
    """

    name: str
    inputs: tuple
    outputs: tuple
    seconds: np.ndarray

    def at(self, inputs, outputs):
        """Seconds at other widths, interpolated linearly in both; beyond the grid, its edge."""
        rows = [np.interp(outputs, self.outputs, row) for row in self.seconds]
        return float(np.interp(inputs, self.inputs, rows))


class LatencyTable:
    """Latencies of the layers of a model, each measured alone at a few widths.

    Args:
        layers: List of `LayerLatency`.
    """

    def __init__(self, layers):
        self.layers = {layer.name: layer for layer in layers}

    def seconds(self, name, inputs, outputs):
        """Seconds of one call of a layer.

        Args:
            name: Name of the layer, with those of the models around it.
            inputs: Number of input channels.
            outputs: Number of output channels.
        """
        if name not in self.layers:
            raise ValueError(
                f"LatencyTable: layer {name!r} was not measured."
                f"{validation.did_you_mean(name, self.layers)} Measure the model that is to be "
                "pruned: kc.profile.latency_table(model)."
            )
        return self.layers[name].at(inputs, outputs)

    def save(self, path):
        """Writes the table as JSON."""
        layers = [
            dataclasses.asdict(layer) | {"seconds": np.asarray(layer.seconds).tolist()}
            for layer in self.layers.values()
        ]
        write_atomically(path, json.dumps({"layers": layers}, indent=1).encode())

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote."""
        layers = json.loads(pathlib.Path(path).read_text())["layers"]
        return cls(
            LayerLatency(
                one["name"], tuple(one["inputs"]), tuple(one["outputs"]), np.array(one["seconds"])
            )
            for one in layers
        )

    def table(self):
        """Latencies at the smallest and the largest widths, as a `Table`."""
        rows = [
            [
                one.name,
                f"{one.inputs[0]} -> {one.outputs[0]}",
                f"{1e6 * one.seconds[0, 0]:,.1f}",
                f"{one.inputs[-1]} -> {one.outputs[-1]}",
                f"{1e6 * one.seconds[-1, -1]:,.1f}",
            ]
            for one in self.layers.values()
        ]
        return Table(["layer", "smallest", "us", "largest", "us"], rows)

    def __str__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def latency_table(model, widths=(0.25, 0.5, 1.0), *, quantize=None, threads=1, runs=20, timer=None):
    """Times each layer of a model alone on LiteRT, at a few numbers of channels.

    For `kc.pruning.Budget(latency=0.5, latency_table=table)`. Measured are Dense layers,
    convolutions without groups, transposed, depthwise and separable ones; what else the model has
    is left out of the budget. Layers that are alike are measured once. This exports up to
    `len(widths)**2` models for each kind of layer: some seconds to minutes.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        widths: Shares of the channels to measure at, each in (0, 1]; all of them always are.
        quantize: As of `kc.export.to_tflite`, without calibration: `None`, `"float16"` or
            `"dynamic"`.
        threads: Threads of each interpreter.
        runs: Timed rounds.
        timer: Function from a list of models of one layer to their seconds; `None` for LiteRT on
            this machine. Give one that measures on the device that the model is for.

    Returns:
        A `LatencyTable`.

    Raises:
        ValueError: if the model has no graph or no such layer, or a shape is open.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="fc")])
    >>> weights = lambda models: [one.count_params() * 1e-9 for one in models]
    >>> print(kc.profile.latency_table(model, timer=weights))
    layer  smallest   us  largest   us
    -----  --------  ---  -------  ---
    fc       2 -> 1  0.0   8 -> 4  0.0
    """
    owner = "latency_table"
    check_graph(model, owner)
    shares = sorted(
        {validation.number("widths", w, 0, 1, low_open=True, owner=owner) for w in widths} | {1.0}
    )
    timer = timer or _lite_timer(quantize, threads, runs)
    measured, layers = {}, {}
    for call in CallGraph(model).calls:
        ends = channel_ends(call.operation)
        name = "/".join(call.path)
        if ends is None or name in layers:
            continue
        shape = _input_shape(call)
        inputs, outputs = (_grid(end, shares) for end in ends)
        # What tells layers apart in time.
        config = {k: v for k, v in call.operation.get_config().items() if k != "name"}
        kind = json.dumps([type(call.operation).__name__, config, shape], default=str)
        if kind not in measured:
            models = [_alone(call.operation, shape, i, o) for i in inputs for o in outputs]
            seconds = np.array(timer(models), "float64")
            measured[kind] = seconds.reshape(len(inputs), len(outputs))
        layers[name] = LayerLatency(name, inputs, outputs, measured[kind])
    if not layers:
        raise ValueError(
            f"latency_table: model '{model.name}' has no Dense layer or convolution to measure."
        )
    return LatencyTable(layers.values())


def channel_ends(layer):
    """Where a layer's kernels count its input and its output channels.

    Returns:
        `((variable, axis), (variable, axis))`, `((variable, axis), None)` for a depthwise layer, or
        `None` for a layer that is not measured.
    """
    if isinstance(layer, keras.layers.Dense):
        return (layer.kernel, 0), (layer.kernel, 1)
    if isinstance(layer, _DEPTHWISE):
        return (layer.kernel, len(layer.kernel.shape) - 2), None
    if isinstance(layer, _SEPARABLE):
        last = len(layer.pointwise_kernel.shape) - 1
        return (layer.depthwise_kernel, last - 1), (layer.pointwise_kernel, last)
    if isinstance(layer, _TRANSPOSED):
        last = len(layer.kernel.shape) - 1
        return (layer.kernel, last), (layer.kernel, last - 1)
    if isinstance(layer, _CONVOLUTIONS) and layer.groups == 1:
        last = len(layer.kernel.shape) - 1
        return (layer.kernel, last - 1), (layer.kernel, last)
    return None


def _grid(end, shares):
    if end is None:
        return (1,)
    variable, axis = end
    width = variable.shape[axis]
    return tuple(sorted({max(1, round(share * width)) for share in shares}))


def _input_shape(call):
    shape = call.inputs[0].shape[1:]
    if None in shape:
        raise ValueError(
            f"latency_table: layer '{call.operation.name}' has an open input shape {shape}; build "
            "the model with a keras.Input of a fixed shape."
        )
    return shape


def _alone(layer, shape, inputs, outputs):
    """A model of one layer like `layer`, of other widths."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.Dense):
        config["units"] = outputs
    elif not isinstance(layer, _DEPTHWISE):
        config["filters"] = outputs
    axis = 0 if getattr(layer, "data_format", None) == "channels_first" else len(shape) - 1
    shape = [inputs if place == axis else size for place, size in enumerate(shape)]
    return keras.Sequential([keras.Input(shape), new_like(layer, config)])


def _lite_timer(quantize, threads, runs):
    def timer(models):
        lites = [to_tflite(model, quantize=quantize) for model in models]
        return [1e-6 * us for us in time_together(lites, runs, threads).microseconds]

    return timer
