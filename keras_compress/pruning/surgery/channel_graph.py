"""`ChannelGraph`: which channels of a model must stay or go together."""

import dataclasses
import warnings

import keras
import numpy as np
from scipy.sparse import coo_array, csgraph

from keras_compress.call_graph import CallGraph
from keras_compress.convert import check_graph
from keras_compress.pruning.surgery import channel_rules
from keras_compress.tables import Table

#: The channel number of everything that must stay as it is.
FIXED = 0

_ACTIVATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.PReLU,
)
# Of keras.ops, which has no public name for their classes.
_ACTIVATION_OPERATIONS = ("Elu", "Gelu", "LeakyRelu", "Relu", "Relu6", "Selu", "Sigmoid", "Silu")


@dataclasses.dataclass(eq=False)
class Producer:
    """A layer that makes channels: new ones, not those of its input.

    Attributes:
        name: Name of the layer, with those of the models around it (`"encoder/conv"`);
            `"layer/heads"` for the heads of an attention layer.
        layer: The layer.
        variable: Its kernel.
        place: Axis of the kernel that counts the channels.
        value: Its output in the graph, of the first call.
        axis: Axis of the output that the channels lie on; `None` where they stay inside (heads).
        channels: Array of the numbers of its channels, in order; 0 for one that is fixed.
    """

    name: str
    layer: keras.layers.Layer
    variable: keras.Variable
    place: int
    value: object
    axis: int
    channels: np.ndarray


@dataclasses.dataclass(eq=False)
class Consumer:
    """A layer that sums over channels.

    Attributes:
        name: Name of the layer.
        layer: The layer.
        variable: Its kernel.
        place: Axis of the kernel that counts the channels.
        value: Its input in the graph, of the first call.
        axis: Axis of the input that the channels lie on.
        channels: Array of the numbers of the channels it reads, in order; 0 for one that is fixed.
    """

    name: str
    layer: keras.layers.Layer
    variable: keras.Variable
    place: int
    value: object
    axis: int
    channels: np.ndarray


@dataclasses.dataclass(eq=False)
class ChannelGroup:
    """Channels that are alternatives to one another: those of a layer, or of layers that add up.

    Attributes:
        channels: Sorted array of channel numbers, one for all that must stay or go together.
        producers: `Producer`s that make them.
        normalized: Whether a layer takes statistics over them (LayerNormalization and the like),
            so that removing even a channel of zeros changes the others.
    """

    channels: np.ndarray
    producers: list
    normalized: bool

    @property
    def name(self):
        """Names of the producing layers."""
        return " + ".join(dict.fromkeys(producer.name for producer in self.producers))

    def __len__(self):
        return len(self.channels)


class ChannelGraph:
    """Follows every channel of a model from the layer that makes it to those that read it.

    Each channel gets a number. Where two must have the same fate (the two sides of a residual
    addition, a channel and its gate, the 49 elements that `Flatten` makes of it) they get the same
    one, whatever the layers are called. A channel that must stay (the model's outputs, whatever
    an unknown layer reads) has number 0.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.

    Attributes:
        groups: List of `ChannelGroup`, in the order of the model.
        producers: List of `Producer`.
        consumers: List of `Consumer`.
        unknown: Names of the layers that are kept whole because they are not known.
        copiable: Boolean array over channel numbers: whether a channel can be taken several times
            without a change of the outputs.
        blocks: Boolean array over channel numbers: whether neighbours of that number are copied as
            one (the outputs of a depthwise layer for one channel), and not one by one (channels of
            groups that stay alike).

    Raises:
        ValueError: if the model has no graph or is not built.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    >>> y = keras.layers.Conv2D(32, 3, padding="same", name="wide")(x)
    >>> y = keras.layers.Conv2D(16, 3, padding="same", name="narrow")(y)
    >>> x = keras.layers.Add()([x, y])
    >>> outputs = keras.layers.Dense(10)(keras.layers.Flatten()(x))
    >>> graph = kc.pruning.ChannelGraph(keras.Model(inputs, outputs))
    >>> [(group.name, len(group)) for group in graph.groups]
    [('stem + narrow', 16), ('wide', 32)]
    """

    def __init__(self, model):
        check_graph(model, "ChannelGraph")
        self.model = model
        self.graph = CallGraph(model)
        self.producers, self.consumers, self.unknown = [], [], []
        # Sizes that reshaping calls are to ask for: id of the operation -> numbers of each axis.
        self.reshaped = {}
        self._count = FIXED + 1
        self._pairs, self._normalized, self._single = [], [], []
        self._axes, self._indices, self._variables = {}, {}, {}
        self._summed = set()
        for value in self.graph.inputs:
            self._axes[value] = (None,) * len(value.shape)
        for call in self.graph.calls:
            outputs = channel_rules.trace(self, call)
            self._axes.update(zip(call.outputs, outputs, strict=True))
        for value in keras.tree.flatten(self.graph.outputs):
            self.fix(*self._axes[value])
        self._resolve()
        if self.unknown:
            names = ", ".join(f"'{name}'" for name in dict.fromkeys(self.unknown))
            warnings.warn(
                f"Channels that these layers read are all kept, as it is not known what they do: "
                f"{names}. Teach it by kc.pruning.register_channel_rule.",
                stacklevel=3,
            )

    # What rules call.

    def axes(self, value):
        """Numbers of the channels on each axis of a tensor, `None` for an axis without any."""
        return self._axes[value]

    def new(self, size):
        """Numbers of `size` new channels."""
        self._count += size
        return np.arange(self._count - size, self._count)

    def tie(self, first, second):
        """Makes the channels of two arrays of numbers, one by one, stay or go together."""
        if first is not None or second is not None:
            first = FIXED if first is None else first
            second = FIXED if second is None else second
            first, second = np.broadcast_arrays(first, second)
            self._pairs.append((first.ravel(), second.ravel()))

    def fix(self, *arrays):
        """Keeps all channels of the arrays."""
        for array in arrays:
            self.tie(array, None)

    def normalize(self, channels):
        """Notes that a layer takes statistics over channels."""
        if channels is not None:
            self._normalized.append(channels)

    def keep_single(self, channels):
        """Notes that channels cannot be copied: copies would change sums, or lie elsewhere."""
        if channels is not None:
            self._single.append(channels)

    def sum(self, variable, axis):
        """Notes that a layer sums over the channels on an axis of its variable.

        `consume` does; a rule needs it for other axes only. Copies of a channel share those
        weights.
        """
        self._summed.add((id(variable), axis % len(variable.shape)))

    def sums(self, variable):
        """Axes of a variable that its layer sums over."""
        return [axis for axis in self.positions(variable) if (id(variable), axis) in self._summed]

    def index(self, variable, axis, channels):
        """Says which channels an axis of a layer's variable counts.

        Args:
            variable: The variable, or `None` (a layer without a bias).
            axis: Axis of the variable.
            channels: Numbers, one for each position, or `None` if they are all fixed.
        """
        if variable is None:
            return
        key = (id(variable), axis % len(variable.shape))
        self._variables[id(variable)] = variable
        if key in self._indices:
            self.tie(self._indices[key], channels)
        else:
            self._indices[key] = self._known(channels, variable.shape[axis])

    def indexed(self, variable, axis):
        """The numbers that `index` noted for a variable's axis at an earlier call, or `None`."""
        return self._indices.get((id(variable), axis % len(variable.shape)))

    def produce(self, call, axis, variables, suffix=""):
        """Numbers for the channels that a layer makes: the same ones at each of its calls.

        Args:
            call: The `Call`.
            axis: Axis of its output that they lie on, or `None`.
            variables: Pairs of a variable (or `None`) and the axis that counts these channels, the
                kernel first.
            suffix: What the producer's name has after that of the layer.
        """
        kernel, place = variables[0]
        known = self.indexed(kernel, place)
        if known is None:
            layer, known = call.operation, self.new(kernel.shape[place])
            name = "/".join(call.path) + suffix
            for variable, at in variables:
                self.index(variable, at, known)
            place = place % len(kernel.shape)
            self.producers.append(
                Producer(name, layer, kernel, place, call.outputs[0], axis, known)
            )
        return known

    def consume(self, call, value, axis, variable, place):
        """Says that a layer sums over the channels on an axis of its input.

        Args:
            call: The `Call`.
            value: The input.
            axis: Axis of the input.
            variable: Variable with an axis for these channels.
            place: That axis.
        """
        channels = self.axes(value)[axis]
        first = self.indexed(variable, place) is None
        self.index(variable, place, channels)
        self.sum(variable, place)
        if first:
            known = self._known(channels, variable.shape[place])
            place = place % len(variable.shape)
            name = "/".join(call.path)
            self.consumers.append(
                Consumer(name, call.operation, variable, place, value, axis, known)
            )

    @staticmethod
    def _known(channels, size):
        return np.full(size, FIXED) if channels is None else channels

    # What comes of it.

    def _resolve(self):
        numbers = self._connect(self._pairs, self._count)
        # All channels tied to a fixed one are fixed.
        numbers = np.where(numbers == numbers[FIXED], FIXED, numbers + 1)
        raw = [ids for axes in self._axes.values() for ids in axes if ids is not None]
        raw += self._indices.values()
        for one in (*self.producers, *self.consumers):
            one.channels = numbers[one.channels]
        self._indices = {key: numbers[ids] for key, ids in self._indices.items()}
        self._axes = {
            value: tuple(ids if ids is None else numbers[ids] for ids in axes)
            for value, axes in self._axes.items()
        }
        self.reshaped = {
            key: tuple(ids if ids is None else numbers[ids] for ids in axes)
            for key, axes in self.reshaped.items()
        }
        self.count = int(numbers.max()) + 1
        normalized = np.zeros(self.count, bool)
        for ids in self._normalized:
            normalized[numbers[ids]] = True
        self._resolve_copies(numbers, raw, normalized)
        free = [p.channels[p.channels != FIXED] for p in self.producers]
        families = self._connect([(ids[:-1], ids[1:]) for ids in free], self.count)
        self.groups = []
        for family in dict.fromkeys(families[ids[0]] for ids in free if len(ids)):
            channels = np.flatnonzero(families == family)
            producers = [p for p in self.producers if np.isin(p.channels, channels).any()]
            self.groups.append(ChannelGroup(channels, producers, bool(normalized[channels].any())))

    def _resolve_copies(self, numbers, raw, normalized):
        """Which channels can be copied, and how copies lie.

        Args:
            numbers: Array from the channels' first numbers to the final ones.
            raw: Arrays of first numbers, as they lie on the axes of tensors and variables.
            normalized: Boolean array over final numbers.
        """
        self.blocks, tied = np.zeros((2, self.count), bool)
        for ids in {id(ids): ids for ids in raw}.values():
            self.blocks[numbers[ids[1:][ids[1:] == ids[:-1]]]] = True
            final, times = np.unique(numbers[np.unique(ids)], return_counts=True)
            tied[final[times > 1]] = True
        # Where both happen, one tensor would have copies in blocks and another one by one.
        self.copiable = ~(normalized | (self.blocks & tied))
        for ids in (np.array([FIXED]), *(numbers[ids] for ids in self._single)):
            self.copiable[ids] = False

    @staticmethod
    def _connect(pairs, count):
        first, second = (
            np.concatenate(side) if side else np.zeros(0, int)
            for side in ([p[0] for p in pairs], [p[1] for p in pairs])
        )
        links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
        return csgraph.connected_components(links, directed=False)[1]

    def activation(self, producer):
        """The feature map of a producer: its output after batch normalization and activation."""
        return self.feature_maps(producer)[-1]

    def feature_maps(self, producer):
        """List of a producer's output and what batch normalization and activations make of it."""
        return feature_maps(producer.value)

    def positions(self, variable):
        """Dict from each axis of a variable that counts channels to their numbers."""
        return {
            axis: self._indices[id(variable), axis]
            for axis in range(len(variable.shape))
            if (id(variable), axis) in self._indices
        }

    def table(self):
        """The groups as a `Table`."""
        rows = [
            [group.name, len(group), "yes" if group.normalized else ""] for group in self.groups
        ]
        return Table(["channels of", "number", "normalized"], rows)

    def __str__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def feature_maps(value):
    """List of a layer's output `Value` and what batch normalization and activations make of it."""
    values = [value]
    while True:
        (call,) = values[-1].readers if len(values[-1].readers) == 1 else (None,)
        if call is None or not (
            isinstance(call.operation, _ACTIVATIONS)
            or type(call.operation).__name__ in _ACTIVATION_OPERATIONS
        ):
            return values
        values.append(call.output)
