"""`quantize_aware`: a model that trains with the rounding errors of its .tflite."""

import collections
import warnings

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.convert import check_graph
from keras_compress.layers.fake_quant import FakeQuant
from keras_compress.layers.fake_quant_batch_normalization import FakeQuantBatchNormalization
from keras_compress.layers.fake_quant_conv2d import FakeQuantConv2D
from keras_compress.layers.fake_quant_dense import FakeQuantDense
from keras_compress.layers.fake_quant_depthwise_conv2d import FakeQuantDepthwiseConv2D
from keras_compress.layers.fake_quant_kernel import FakeQuantKernel
from keras_compress.quantizers.call_graph import CallGraph, Value

SCHEMES = ("int8", "int8_weights", "int4_weights", "16x8")

_KERNELS = {
    keras.layers.Dense: FakeQuantDense,
    keras.layers.Conv2D: FakeQuantConv2D,
    keras.layers.DepthwiseConv2D: FakeQuantDepthwiseConv2D,
}

#: Layers that give values of their input (or zero): these stay on its grid.
_SAME_VALUES = (
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
    keras.layers.Identity,
)
#: Layers that average values: LiteRT rounds the results to the grid of the input.
_SAME_GRID = (keras.layers.AveragePooling1D, keras.layers.AveragePooling2D)
#: Layers of several inputs, which LiteRT wants on the grid of the output.
_SHARED_GRID = (keras.layers.Concatenate, keras.layers.Maximum, keras.layers.Minimum)
_MEANS = (keras.layers.GlobalAveragePooling1D, keras.layers.GlobalAveragePooling2D)
_SUMS = (keras.layers.Add, keras.layers.Subtract, keras.layers.Multiply)
#: Names of the operations behind `x + y`, `x - y` and `x * y`.
_SUM_OPERATIONS = ("Add", "Subtract", "Multiply")

#: Activations that the converter fuses into the operation before them.
_FUSED = ("linear", "relu", "relu6")
#: Activations whose output LiteRT has on a grid of their own.
_UNIT = (0.0, 255 / 256)
_FIXED = {"sigmoid": _UNIT, "softmax": _UNIT, "tanh": (-1.0, 127 / 128)}
#: Activations that LiteRT computes in integers, from any grid to any grid.
_TABULATED = ("leaky_relu", "gelu", "hard_silu")

_KNOWN = (*_FUSED, *_FIXED, *_TABULATED, "silu")

#: Samples at a time of which the ranges are read.
_OBSERVED_BATCH = 32

_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}


def quantize_aware(model, scheme="int8", layers=None, data=None, decay=0.99):
    """Returns a copy of a trained model that trains with the rounding of its .tflite.

    Kernels (Dense, Conv2D, DepthwiseConv2D, SeparableConv2D) and, with `scheme="int8"`, the tensors
    between layers are rounded to their grids in every step, with straight-through gradients.
    `kc.export.to_tflite(model)` then needs no calibration data: every quantised layer is an integer
    kernel, with no way back to float between them, and gives the outputs of the Keras model up to
    steps of the grid in which LiteRT rounds otherwise.

    What is done, as the converter will do it:

    - A batch normalisation behind a kernel is folded into it (see
      `kc.layers.fake_quant_kernel.FakeQuantKernel` for what that means in training); any other
      becomes a depthwise 1x1 convolution at export. `freeze_statistics` stops the statistics.
    - ReLU and ReLU6 are fused: ranges are taken behind them. Sigmoid, softmax and tanh have the
      grids that LiteRT fixes. leaky ReLU, GELU, SiLU and hard SiLU have grids of their own.
    - Sums, differences, products (also `x + y`, ...) and global averages have grids of their own;
      inputs and output of a concatenation, a maximum or a minimum share one. Pooling, padding,
      reshaping and dropout stay on the grid of their input.
    - Everything else stays in float, and a warning names it.

    The copy is one functional model: nested models are dissolved (a subclass of `Model` with a
    training step of its own becomes a plain one). Layers keep their names where these are unique.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        scheme: `"int8"`: weights and activations, integer kernels throughout. `"int8_weights"` and
            `"int4_weights"`: kernels only, on grids of 8 and 4 bits with a step for each output
            channel; a .tflite stores them as native integers, for float activations (int4 where
            LiteRT has a kernel: dense layers and 1x1 convolutions; others hold the values of 4
            bits in int8; depthwise kernels are float).
        layers: The layers to quantise: a key, or a list of keys (layer names, globs, layer classes,
            layers or predicates); `None` for all. Layers without a kernel follow: they are
            quantised where all of their inputs are.
        data: Samples of the input (an array, or a list or dict of arrays as the model takes them)
            to read the ranges of activations from, or `None`: training reads them.
        decay: Weight of the past in the moving average of ranges.

    Returns:
        A new functional model, compiled like `model` if that is compiled.

    Raises:
        ValueError: if `scheme` is unknown or "16x8", the model has no graph, is not built or is
            quantised already, a key chooses no layer, a layer chosen by name has no quantised form,
            or `data` are empty.

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018.
        Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
        whitepaper", 2018.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
    ...     keras.layers.BatchNormalization(),
    ...     keras.layers.ReLU(),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(2, name="logits"),
    ... ])
    >>> aware = kc.quantizers.quantize_aware(model)
    >>> [type(layer).__name__ for layer in aware.layers[1:4]]
    ['FakeQuant', 'FakeQuantConv2D', 'ReLU']
    """
    validation.one_of("scheme", scheme, SCHEMES, "quantize_aware")
    if scheme == "16x8":
        raise ValueError(
            "quantize_aware: scheme='16x8' cannot be exported: TensorFlow's converter writes "
            "activations of 16 bits from calibration only, and makes wrong int8 tensors of 16-bit "
            "fake quantisation (measured with TensorFlow 2.21). Use scheme='int8', or "
            "'int8_weights' where activations need more than 8 bits."
        )
    check_graph(model, "quantize_aware")
    for layer in matching.leaf_layers(model):
        if isinstance(layer, (FakeQuant, FakeQuantKernel)):
            raise ValueError(
                f"quantize_aware: model '{model.name}' is quantised already: layer '{layer.name}' "
                f"is a {type(layer).__name__}. Give the model from before."
            )
    graph = CallGraph(model)
    plan = _Plan(graph, scheme, _chosen(model, layers))
    new = _Rewriter(graph, plan, scheme, decay).model(model)
    if plan.floats:
        warnings.warn(
            f"quantize_aware: {', '.join(plan.floats)} stay in float, having no quantised form: "
            "unless the converter finds an integer one, the .tflite goes to float and back there.",
            stacklevel=2,
        )
    if data is not None:
        _observe(new, model, data)
    return new


def freeze_statistics(model, frozen=True):
    """Stops, or starts again, the moving statistics of a quantize-aware model.

    Ranges of activations and statistics of batch normalisations stay as they are, and training
    normalises with the latter, as inference does. The last epochs are best trained so. It acts
    inside of the compiled step: no `compile` is needed.

    Args:
        model: A model made by `quantize_aware`.
        frozen: Whether they stop.

    Raises:
        ValueError: if the model has no such statistics.
    """
    flags = [layer.frozen for layer in matching.leaf_layers(model) if hasattr(layer, "frozen")]
    if not flags:
        raise ValueError(
            f"freeze_statistics: model '{model.name}' has no moving statistics of quantize-aware "
            "training. Give what quantize_aware() returned."
        )
    for flag in flags:
        flag.assign(float(frozen))


def _chosen(model, keys):
    """Ids of the layers that `layers=` chooses, or `None` for all."""
    leaves = matching.leaf_layers(model)
    if keys is None:
        if not any(_has_kernel(layer) for layer in leaves):
            raise ValueError(
                f"quantize_aware: model '{model.name}' has no layer with a quantised form: "
                f"{_kernel_names()}."
            )
        return None
    keys = list(keys) if isinstance(keys, (list, tuple)) else [keys]
    chosen = matching.resolve(keys, leaves)
    for layer, key in chosen:
        named = key == layer.name or key is layer or key is type(layer)
        if named and not _has_kernel(layer):
            raise ValueError(
                f"quantize_aware: layer '{layer.name}' ({type(layer).__name__}), chosen by "
                f"{matching.describe(key)}, has no quantised form of its own: `layers` takes those "
                f"with a kernel, {_kernel_names()}. Layers without follow their inputs."
            )
    with_kernel = {id(layer) for layer, _ in chosen if _has_kernel(layer)}
    if not with_kernel:
        raise ValueError(
            f"quantize_aware: {', '.join(matching.describe(key) for key in keys)} chooses no layer "
            f"with a kernel ({_kernel_names()}); chosen were "
            f"{', '.join(repr(layer.name) for layer, _ in chosen)}."
        )
    return with_kernel


def _has_kernel(layer):
    plain = type(layer) in _KERNELS or type(layer) is keras.layers.SeparableConv2D
    # A LoRA or quantized layer computes with more than its kernel.
    extra = getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None)
    return plain and not extra


def _kernel_names():
    return ", ".join(cls.__name__ for cls in (*_KERNELS, keras.layers.SeparableConv2D))


def _activation_name(function):
    """Name of an activation function as the tables above have it, or `"other"`."""
    if function is None:
        return "linear"
    name = keras.activations.serialize(function)
    return _ALIASES.get(name, name) if isinstance(name, str) else "other"


def _activation_of(layer):
    """Name of the activation that a layer is, or `None` if it is another or none."""
    if type(layer) is keras.layers.Activation:
        return _activation_name(layer.activation)
    if type(layer) is keras.layers.ReLU and not layer.threshold:
        if layer.negative_slope:
            return None if layer.max_value is not None else "leaky_relu"
        return {None: "relu", 6: "relu6"}.get(layer.max_value)
    if type(layer) is keras.layers.LeakyReLU:
        return "leaky_relu"
    if type(layer) is keras.layers.Softmax:
        return "softmax"
    return None


def _kind(call):
    """What a call is to the quantiser: a word that `_Rewriter` has a method for."""
    layer = call.operation
    if _has_kernel(layer):
        return "kernel"
    one_input = len(call.inputs) == 1 and len(call.outputs) == 1
    if type(layer) is keras.layers.BatchNormalization and one_input:
        return "norm" if layer.axis in (-1, layer.input_spec.ndim - 1) else "float"
    if type(layer) in _SAME_VALUES:
        return "same_values"
    if type(layer) in _SAME_GRID:
        return "same_grid"
    if type(layer) in _SHARED_GRID:
        return "shared_grid"
    if type(layer) in _MEANS:
        return "mean"
    if type(layer) in _SUMS:
        return "sum"
    if not isinstance(layer, keras.layers.Layer):
        of_two = type(layer).__name__ in _SUM_OPERATIONS and len(call.inputs) == 2
        return "sum" if of_two else "float"
    name = _activation_of(layer)
    if name in _KNOWN:
        return "activation" if one_input else "float"
    return "float"


def _ends_in(call):
    """Name of the activation that the output of a call has gone through, or `None`."""
    layer = call.operation
    return _activation_name(layer.activation) if _has_kernel(layer) else _activation_of(layer)


class _Plan:
    """Which values are rounded, and which of them share a grid: decided before layers are made.

    Args:
        graph: The `CallGraph`.
        scheme: See `quantize_aware`.
        chosen: Ids of the layers with a kernel to quantise, or `None` for all.

    Attributes:
        activations: Whether values are rounded at all.
        kinds: Dict from `Call` to a word of `_kind`, `"float"` for those that are not quantised.
        folded: Dict from the call of a kernel to that of the batch normalisation that goes into it.
        rounded: The values that are on a grid when they leave the call that gives them, or, where
            the next call fuses or folds it away, would be.
        sites: Dict from what `FakeQuant` rounds with a range of its own (a value, or a call and the
            position of an input) to its site.
        counts: Dict from the group of values that share a grid to its number of sites.
        floats: What stays in float between quantised layers, in words.
    """

    def __init__(self, graph, scheme, chosen):
        self.activations = scheme == "int8"
        self.kinds, self.folded, self.rounded = {}, {}, set()
        self.sites, self.counts, self.floats = {}, {}, []
        self._root, self._joined, self._fixed, self._passing = {}, {}, set(), set()
        self._uses = collections.Counter(id(call.operation) for call in graph.calls)
        for call in graph.calls:
            self._classify(call, chosen)
        if self.activations:
            for call in graph.calls:
                self._find_sites(call)

    def group(self, value):
        """The value that stands for all that share a grid with this one."""
        value = self._root.get(value, value)
        while value in self._joined:
            value = self._joined[value]
        return value

    def is_fixed(self, value):
        """Whether the grid of a value is one that LiteRT fixes."""
        return self._root.get(value, value) in self._fixed

    def _classify(self, call, chosen):
        kind = _kind(call)
        before = call.inputs[0].call if call.inputs else None
        inputs_rounded = bool(call.inputs) and all(v in self.rounded for v in call.inputs)
        if kind == "kernel":
            quantised = chosen is None or id(call.operation) in chosen
        elif kind == "norm" and self._folds(before, call):
            self.folded[before] = call
            kind, quantised = "folded", True
        else:
            quantised = self.activations and kind != "float" and (chosen is None or inputs_rounded)
        self.kinds[call] = kind if quantised else "float"
        if not self.activations:
            return
        if quantised:
            self._place(call, kind, before)
            if kind == "kernel" and _ends_in(call) not in _KNOWN:
                self.floats.append(f"the activation of '{call.operation.name}'")
        elif kind == "float" and any(value in self.rounded for value in call.inputs):
            self.floats.append(f"'{call.operation.name}' ({type(call.operation).__name__})")

    def _place(self, call, kind, before):
        """Puts the output of a quantised call into a group."""
        output = call.output
        roots = [self._root.setdefault(value, value) for value in call.inputs]
        self.rounded.add(output)
        self._root[output] = output
        if kind == "folded" or (kind == "activation" and self._fuses(before, call)):
            self._passing.add(call.inputs[0])
        if kind in ("same_values", "same_grid"):
            self._root[output] = roots[0]
        elif kind == "shared_grid":
            # A fixed grid is requantised, unless all are.
            free = [root for root in roots if root not in self._fixed] or roots[:1]
            self._root[output] = free[0]
            for root in free[1:]:
                mine, other = self.group(free[0]), self.group(root)
                if mine is not other:
                    self._joined[other] = mine
        elif kind in ("kernel", "activation") and _ends_in(call) in _FIXED:
            self._fixed.add(output)

    def _folds(self, before, norm):
        return (
            before is not None
            and self.kinds[before] == "kernel"
            and self._gives_to(before, norm)
            and self._uses[id(before.operation)] == self._uses[id(norm.operation)] == 1
            and getattr(before.operation, "data_format", "channels_last") == "channels_last"
        )

    def _fuses(self, before, activation):
        return (
            before is not None
            and _activation_of(activation.operation) in _FUSED
            and self.kinds[before] in ("kernel", "folded", "norm", "sum")
            and self._gives_to(before, activation)
        )

    def _gives_to(self, before, call):
        """Whether the plain sums of a call go to another one and nowhere else."""
        return before.sole_reader is call and _ends_in(before) in (None, "linear")

    def _find_sites(self, call):
        kind = self.kinds[call]
        if kind == "float":
            return
        for value in call.inputs:
            if value not in self.rounded:
                self._add_site(value, value)
        output = call.output
        if kind == "shared_grid" and not self.is_fixed(output):
            for position, value in enumerate(call.inputs):
                if self.is_fixed(value):
                    self._add_site((call, position), output)
        own = self._root[output] is output and not self.is_fixed(output)
        if own and output not in self._passing:
            self._add_site(output, output)

    def _add_site(self, key, value):
        if key not in self.sites:
            group = self.group(value)
            self.sites[key] = self.counts.get(group, 0)
            self.counts[group] = self.sites[key] + 1


class _Rewriter:
    """Makes the layers of the new model, call by call.

    Args:
        graph: The `CallGraph`.
        plan: The `_Plan`.
        scheme: See `quantize_aware`.
        decay: See `quantize_aware`.
    """

    def __init__(self, graph, plan, scheme, decay):
        self.graph = graph
        self.plan = plan
        self.decay = decay
        self.options = {
            "weight_bits": 4 if scheme == "int4_weights" else 8,
            "weights_only": not plan.activations,
        }
        self._tensors, self._on_grid, self._grids = {}, {}, {}
        self._layers, self._copies, self._names = {}, [], set()

    def model(self, source):
        """The new model."""
        for value, tensor in zip(self.graph.inputs, source.inputs, strict=True):
            new = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
            self._tensors[value] = new
            self._names.add(tensor.name)
        inputs = [self._tensors[value] for value in self.graph.inputs]
        if isinstance(source, keras.Sequential):
            (structure,) = inputs
        else:
            structure = keras.tree.pack_sequence_as(source.input, inputs)
        for call in self.graph.calls:
            getattr(self, f"_{self.plan.kinds[call]}")(call)
        outputs = keras.tree.map_structure(self._tensors.get, self.graph.outputs)
        new_model = keras.Model(structure, outputs, name=source.name)
        for old, new in self._copies:
            for variable, target in zip(old.variables, new.variables, strict=True):
                target.assign(keras.ops.convert_to_numpy(variable))
        if source.compiled:
            new_model.compile_from_config(source.get_compile_config())
        return new_model

    # One method for each word of `_kind`.

    def _float(self, call):
        outputs = self._copy(call)(
            *keras.tree.map_structure(self._tensor, call.args),
            **keras.tree.map_structure(self._tensor, call.kwargs),
        )
        for value, tensor in zip(call.outputs, keras.tree.flatten(outputs), strict=True):
            self._tensors[value] = tensor

    def _kernel(self, call):
        layer, norm = call.operation, self.plan.folded.get(call)
        activation = _activation_name(layer.activation)
        inside = activation in _FUSED or not self.plan.activations
        if id(layer) not in self._layers:
            changed = {} if inside else {"activation": None}
            batch_norm = None if norm is None else norm.operation
            self._layers[id(layer)] = self._kernels(call, batch_norm, changed)
        *first, last = self._layers[id(layer)]
        outputs = self._input(call.inputs[0])
        for part in first:
            outputs = self._in_between(part(outputs), part.name)
        outputs = last(outputs)
        if not inside:
            outputs = self._activate(activation, layer.activation, outputs, layer.name)
        self._give(call, outputs)

    def _kernels(self, call, batch_norm, changed):
        """The layers in the place of a kernel layer: two for a separable convolution."""
        layer, name = call.operation, self._name(call)
        options = {**self.options}
        if type(layer) is keras.layers.SeparableConv2D:
            depthwise, pointwise = _separated(layer, self._free_name(f"{name}_depthwise"), name)
            return [
                FakeQuantDepthwiseConv2D.from_layer(depthwise, **options),
                FakeQuantConv2D.from_layer(pointwise, batch_norm, **options, **changed),
            ]
        if type(layer) is keras.layers.Dense and not self.plan.activations:
            options["granularity"] = "channel"
        cls = _KERNELS[type(layer)]
        return [cls.from_layer(layer, batch_norm, name=name, **options, **changed)]

    def _folded(self, call):
        self._give(call, self._tensors[call.inputs[0]])

    def _norm(self, call):
        layer = call.operation
        if id(layer) not in self._layers:
            new = FakeQuantBatchNormalization.from_layer(layer, self._name(call))
            self._layers[id(layer)] = new
        outputs = self._layers[id(layer)](self._input(call.inputs[0]))
        self._give(call, outputs)

    def _activation(self, call):
        layer, (value,) = call.operation, call.inputs
        name = _activation_of(layer)
        if name == "silu":
            outputs = self._silu(self._input(value), self._name(call))
        else:
            outputs = self._copy(call)(self._input(value))
        if name in _FIXED:
            outputs = self._fixed_grid(name, layer.name)(outputs)
        self._give(call, outputs)

    def _same_values(self, call):
        self._give(call, self._copy(call)(self._input(call.inputs[0])))

    # A mean differs by the grid that its output has, which `_give` knows.
    _mean = _same_values

    def _same_grid(self, call):
        outputs = self._copy(call)(self._input(call.inputs[0]))
        self._give(call, self._grid_of(call.output)(outputs, site=None))

    def _shared_grid(self, call):
        plan, tensors = self.plan, []
        for position, value in enumerate(call.inputs):
            tensor = self._input(value)
            if plan.group(value) is not plan.group(call.output):
                site = plan.sites.get((call, position), 0)
                # The converter drops all but one of two grids with no operation between them. This
                # one changes no value.
                clip = "hard_tanh" if self._limits_of(value)[0] < 0 else "relu"
                name = self._free_name(f"{call.operation.name}_input_{position}")
                tensor = keras.layers.Activation(clip, name=name)(tensor)
                tensor = self._grid_of(call.output)(tensor, site=site)
            tensors.append(tensor)
        self._give(call, self._copy(call)(tensors))

    def _sum(self, call):
        first, *others, last = [self._input(value) for value in call.inputs]
        if not isinstance(call.operation, keras.layers.Layer):
            self._give(call, self._copy(call)(first, last))
            return
        # LiteRT adds two at a time, and rounds each sum.
        for other in others:
            name = self._free_name(f"{call.operation.name}_part")
            first = self._in_between(type(call.operation)(name=name)([first, other]), name)
        self._give(call, self._copy(call)([first, last]))

    # What they share.

    def _input(self, value):
        """A value on its grid, or, with float activations, as it is."""
        if not self.plan.activations or value in self.plan.rounded:
            return self._tensors[value]
        if value not in self._on_grid:
            grid = self._grid_of(value)
            self._on_grid[value] = grid(self._tensors[value], site=self.plan.sites[value])
        return self._on_grid[value]

    def _give(self, call, tensor):
        site = self.plan.sites.get(call.output)
        if site is not None:
            tensor = self._grid_of(call.output)(tensor, site=site)
        self._tensors[call.output] = tensor

    def _grid_of(self, value):
        """The `FakeQuant` of the group of a value."""
        group = self.plan.group(value)
        if group not in self._grids:
            name = group.call.operation.name if group.call else self._tensors[group].name
            if self.plan.is_fixed(group):
                self._grids[group] = self._fixed_grid(_ends_in(group.call), name)
            else:
                self._grids[group] = self._grid(name, sites=self.plan.counts[group])
        return self._grids[group]

    def _limits_of(self, value):
        """Ends of a grid that LiteRT fixes."""
        return _FIXED[_ends_in(self.plan.group(value).call)]

    def _grid(self, name, **options):
        return FakeQuant(decay=self.decay, name=self._free_name(f"{name}_grid"), **options)

    def _fixed_grid(self, activation, name):
        return self._grid(name, limits=_FIXED[activation])

    def _in_between(self, tensor, name):
        """A tensor inside of what was one layer, on a grid of its own."""
        return self._grid(name)(tensor) if self.plan.activations else tensor

    def _activate(self, name, function, tensor, layer_name):
        """The activation of a kernel layer, taken out of it."""
        tensor = self._in_between(tensor, layer_name)
        own_name = self._free_name(f"{layer_name}_activation")
        if name == "silu":
            return self._silu(tensor, own_name)
        tensor = keras.layers.Activation(function, name=own_name)(tensor)
        return self._fixed_grid(name, own_name)(tensor) if name in _FIXED else tensor

    def _silu(self, tensor, name):
        """x * sigmoid(x), as LiteRT computes it."""
        gate = keras.layers.Activation("sigmoid", name=self._free_name(f"{name}_gate"))(tensor)
        gate = self._fixed_grid("sigmoid", f"{name}_gate")(gate)
        return keras.layers.Multiply(name=name)([tensor, gate])

    def _copy(self, call):
        operation = call.operation
        if not isinstance(operation, keras.layers.Layer):
            return type(operation).from_config(operation.get_config())
        if id(operation) not in self._layers:
            config = {**operation.get_config(), "name": self._name(call)}
            self._layers[id(operation)] = type(operation).from_config(config)
            self._copies.append((operation, self._layers[id(operation)]))
        return self._layers[id(operation)]

    def _tensor(self, leaf):
        return self._tensors[leaf] if isinstance(leaf, Value) else leaf

    def _name(self, call):
        """Name of the layer in the place of another: that of it, or its path if that is taken."""
        name = call.operation.name
        return self._free_name(name if name not in self._names else "_".join(call.path))

    def _free_name(self, name):
        free, number = name, 1
        while free in self._names:
            free, number = f"{name}_{number}", number + 1
        self._names.add(free)
        return free


def _separated(layer, depthwise_name, pointwise_name):
    """A separable convolution as a depthwise and a 1x1 convolution, built."""
    channels = layer.depthwise_kernel.shape[2]
    shared = {"data_format": layer.data_format, "dtype": layer.dtype_policy}
    shared["trainable"] = layer.trainable
    depthwise = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        name=depthwise_name,
        **shared,
    )
    pointwise = keras.layers.Conv2D(
        layer.filters,
        1,
        activation=layer.activation,
        use_bias=layer.use_bias,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        name=pointwise_name,
        **shared,
    )
    for part, inputs, kernel in (
        (depthwise, channels, layer.depthwise_kernel),
        (pointwise, channels * layer.depth_multiplier, layer.pointwise_kernel),
    ):
        last = layer.data_format == "channels_last"
        part.build((None, None, None, inputs) if last else (None, inputs, None, None))
        part.kernel.assign(keras.ops.convert_to_numpy(kernel))
    if layer.use_bias:
        pointwise.bias.assign(keras.ops.convert_to_numpy(layer.bias))
    return depthwise, pointwise


def _observe(model, source, data):
    """Reads the ranges of activations from data, with nothing trained."""
    structure = source.inputs[0] if isinstance(source, keras.Sequential) else source.input
    arrays = [np.asarray(array) for array in keras.tree.flatten(data)]
    if len(arrays) != len(source.inputs) or min(map(len, arrays)) == 0:
        raise ValueError(
            f"quantize_aware: `data` must be samples of the {len(source.inputs)} inputs of the "
            f"model; got shapes {[array.shape for array in arrays]}."
        )
    grids = [layer for layer in model.layers if isinstance(layer, FakeQuant)]
    try:
        for grid in grids:
            grid.observing = True
        for start in range(0, len(arrays[0]), _OBSERVED_BATCH):
            batch = [array[start : start + _OBSERVED_BATCH] for array in arrays]
            model(keras.tree.pack_sequence_as(structure, batch), training=False)
    finally:
        for grid in grids:
            grid.observing = False
