"""`Rewriter`: makes the layers of a quantize-aware model, call by call."""

import keras

from keras_compress.call_graph import Value
from keras_compress.layers.fake_quant import FakeQuant
from keras_compress.layers.fake_quant_batch_normalization import FakeQuantBatchNormalization
from keras_compress.layers.fake_quant_conv2d import FakeQuantConv2D
from keras_compress.layers.fake_quant_depthwise_conv2d import FakeQuantDepthwiseConv2D
from keras_compress.quantizers.quantizable import (
    FIXED,
    FUSED,
    KERNELS,
    activation_name,
    activation_of,
    ends_in,
)


class Rewriter:
    """Makes the layers of the new model, call by call.

    Args:
        graph: The `CallGraph`.
        plan: The `RoundingPlan`.
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

    # One method for each word of `kind_of`.

    def _float(self, call):
        outputs = self._copy(call)(
            *keras.tree.map_structure(self._tensor, call.args),
            **keras.tree.map_structure(self._tensor, call.kwargs),
        )
        for value, tensor in zip(call.outputs, keras.tree.flatten(outputs), strict=True):
            self._tensors[value] = tensor

    def _kernel(self, call):
        layer, norm = call.operation, self.plan.folded.get(call)
        activation = activation_name(layer.activation)
        inside = activation in FUSED or not self.plan.activations
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
        cls = KERNELS[type(layer)]
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
        name = activation_of(layer)
        if name == "silu":
            outputs = self._silu(self._input(value), self._name(call))
        else:
            outputs = self._copy(call)(self._input(value))
        if name in FIXED:
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
                self._grids[group] = self._fixed_grid(ends_in(group.call), name)
            else:
                self._grids[group] = self._grid(name, sites=self.plan.counts[group])
        return self._grids[group]

    def _limits_of(self, value):
        """Ends of a grid that LiteRT fixes."""
        return FIXED[ends_in(self.plan.group(value).call)]

    def _grid(self, name, **options):
        return FakeQuant(decay=self.decay, name=self._free_name(f"{name}_grid"), **options)

    def _fixed_grid(self, activation, name):
        return self._grid(name, limits=FIXED[activation])

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
        return self._fixed_grid(name, own_name)(tensor) if name in FIXED else tensor

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
