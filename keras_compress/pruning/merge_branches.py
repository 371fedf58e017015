"""`merge_branches`: parallel convolutions become one."""

import collections
import dataclasses

import keras
import numpy as np

from keras_compress.call_graph import CallGraph, Rebuilder, values_of
from keras_compress.convert import new_like
from keras_compress.pruning.fold_batchnorm import fold_batchnorm
from keras_compress.pruning.imitation import Imitation, convolution_before, find, names_of

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def merge_branches(
    model,
    data=None,
    *,
    layers=None,
    epochs=5,
    learning_rate=1e-3,
    batch_size=32,
    seed=None,
    verbose=1,
):
    """Merges small convolutions into larger ones beside them, which get more outputs.

    Of the branches that a `Concatenate` along the channels joins, one whose last convolution is
    smaller (1x1) goes into a neighbour with a larger one (3x3) and the same activation:

    - if both read the same tensor, the small kernel is put inside a larger one of zeros, which
      changes no output (two of one size are simply joined);
    - if the large one reads what another convolution has made of the small one's input (the
      *reduce* of an Inception module), it learns to give both outputs: merged layer by merged
      layer, from the first to the last, each trained alone on the mean squared difference to the
      given model's feature maps.

    Batch normalisations are folded first (see `fold_batchnorm`). There are fewer and larger
    operations afterwards, which suits hardware that waits for each; multiply-accumulates may grow
    (`kc.profile.macs`). Fine-tune the result.

    Args:
        model: A built functional model, nested ones included. It is not changed.
        data: Samples to imitate on: an array, `(x, y)` or an iterable of batches that can be gone
            through again and again; targets are not looked at. `None` will do if all that is
            merged reads the same tensors.
        layers: Names, globs, classes, layers or predicates of the `Concatenate` layers whose
            branches are merged; `None` for all.
        epochs: Passes over the data for each merged layer; 0 only changes the graph.
        learning_rate: Of Adam in these.
        batch_size: Rows of a batch, where `data` is arrays.
        seed: Of new weights and of the order of the samples; `None` for others each time.
        verbose: 0 for no progress bar, 1 for one for each trained layer, with its loss.

    Returns:
        A new model with fewer layers, compiled like `model` if that is. A merged layer has the
        name of the large convolution.

    Raises:
        ValueError: if there is nothing to merge, the model has no graph or is under a pruning mask,
            or data is missing or does not fit.

    Reference:
        Li, Wang, Kong, "DeepRebirth: Accelerating Deep Neural Network Execution on Mobile Devices",
        2018.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> inputs = keras.Input((8, 8, 3))
    >>> small = keras.layers.Conv2D(4, 1, name="small")(inputs)
    >>> large = keras.layers.Conv2D(8, 3, padding="same", name="large")(inputs)
    >>> joined = keras.layers.Concatenate()([small, large])
    >>> outputs = keras.layers.GlobalAveragePooling2D()(joined)
    >>> merged = kc.pruning.merge_branches(keras.Model(inputs, outputs))
    >>> len(merged.layers), merged.get_layer("large").filters
    (3, 12)
    """
    name = "merge_branches"
    old = fold_batchnorm(model)
    chosen = names_of(model, layers, (keras.layers.Concatenate,))
    old_graph = CallGraph(old)
    merges = _merges(old_graph, chosen)
    if not merges:
        raise ValueError(
            f"{name}: nothing to merge. It takes a Concatenate along the channels with a "
            "convolution beside one of at least its size, both with the same activation, the "
            "larger one on the same input or on what is computed from it."
        )
    imitation = None
    if not all(all(merge.exact) for merge in merges):
        imitation = Imitation(old, data, epochs, learning_rate, batch_size, seed, verbose, name)
    make = keras.initializers.GlorotUniform(seed)
    new = old
    for merge in merges:
        graph = CallGraph(new)
        new = _merged(new, graph, old_graph, merge, imitation, make)
    return new


@dataclasses.dataclass
class _Merge:
    """Neighbouring branches that become one.

    Attributes:
        path: Of the call of the `Concatenate`.
        paths: Of the branches' convolutions, in order.
        host: Position of the large one among them.
        exact: For each, whether its kernel can be put inside that of the host.
        values: Its outputs in the old graph, for each.
    """

    path: tuple
    paths: list
    host: int
    exact: list
    values: list


def _merges(graph, chosen):
    """The `_Merge`s of a graph."""
    uses = collections.Counter(id(call.operation) for call in graph.calls)
    found = []
    for call in graph.calls:
        if type(call.operation) is not keras.layers.Concatenate or uses[id(call.operation)] > 1:
            continue
        if chosen is not None and call.operation.name not in chosen:
            continue
        branches = [_Branch.of(value, call, uses) for value in call.inputs]
        free = [branch is not None for branch in branches]
        order = [place for place, branch in enumerate(branches) if branch]
        # The largest kernels take in what is beside them first.
        for host in sorted(order, key=lambda place: -np.prod(branches[place].layer.kernel_size)):
            if not free[host]:
                continue
            first = last = host
            while first > 0 and free[first - 1] and _fits(branches[first - 1], branches[host]):
                first -= 1
            while (
                last + 1 < len(free)
                and free[last + 1]
                and _fits(branches[last + 1], branches[host])
            ):
                last += 1
            if first == last:
                continue
            places = range(first, last + 1)
            for place in places:
                free[place] = False
            found.append(
                _Merge(
                    call.path,
                    [branches[place].call.path for place in places],
                    host - first,
                    [_inside(branches[place], branches[host]) is not None for place in places],
                    [call.inputs[place] for place in places],
                )
            )
    return found


@dataclasses.dataclass
class _Branch:
    """One input of a `Concatenate`: a convolution and the activations behind it."""

    call: object
    between: list

    @classmethod
    def of(cls, value, join, uses):
        found = convolution_before(value, uses, _CONVOLUTIONS)
        if found is None or found[0].path[:-1] != join.path[:-1]:
            return None
        branch = cls(*found)
        layer, rank = branch.layer, len(value.shape)
        axis = 1 if layer.data_format == "channels_first" else rank - 1
        if join.operation.axis % rank != axis or layer.groups > 1:
            return None
        return branch

    @property
    def layer(self):
        return self.call.operation

    @property
    def activations(self):
        """What makes two branches' activations the same."""
        configs = [keras.activations.serialize(self.layer.activation)]
        for call in self.between:
            config = {**call.operation.get_config(), "name": None}
            configs.append((type(call.operation), config))
        return configs


def _fits(guest, host):
    """Whether a branch can go into another one."""
    small, large = guest.layer, host.layer
    if type(small) is not type(large) or guest.activations != host.activations:
        return False
    if small.data_format != large.data_format or small.dtype_policy != large.dtype_policy:
        return False
    if _inside(guest, host) is not None:
        return True
    sizes = list(zip(small.kernel_size, large.kernel_size, strict=True))
    smaller = all(a <= b for a, b in sizes) and any(a < b for a, b in sizes)
    return smaller and _comes_from(host.call.inputs[0], guest.call.inputs[0])


def _comes_from(value, source):
    """Whether a tensor is computed from another one."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if value is source:
            return True
        if value.call is not None and value not in seen:
            seen.add(value)
            waiting += value.call.inputs
    return False


def _inside(guest, host):
    """Where in the host's kernel that of the guest must lie for the same outputs, or `None`.

    Returns:
        Tuple of the first position on each spatial axis.
    """
    small, large = guest.layer, host.layer
    (value,) = guest.call.inputs
    if value is not host.call.inputs[0] or small.strides != large.strides:
        return None
    last = small.data_format == "channels_last"
    lengths = value.shape[1:-1] if last else value.shape[2:]
    places = []
    for axis, length in enumerate(lengths):
        one = small.kernel_size[axis] == 1
        if not one and small.dilation_rate[axis] != large.dilation_rate[axis]:
            return None
        # What a guest of one position dilates by is of no matter.
        step = large.dilation_rate[axis]
        paddings = [_padding(layer, axis, length) for layer in (large, small)]
        if None in paddings:
            return None
        place, rest = divmod(paddings[0] - paddings[1], step)
        if rest or not 0 <= place <= large.kernel_size[axis] - small.kernel_size[axis]:
            return None
        places.append(place)
    return tuple(places)


def _padding(layer, axis, length):
    """Zeros that a convolution puts before an axis, or `None` if that depends on an open size."""
    reach = layer.dilation_rate[axis] * (layer.kernel_size[axis] - 1)
    if layer.padding == "causal":
        return reach
    if layer.padding == "valid" or reach == 0:
        return 0
    step = layer.strides[axis]
    if length is None:
        return reach // 2 if step == 1 else None
    return max((-(-length // step) - 1) * step + reach + 1 - length, 0) // 2


def _merged(new, graph, old_graph, merge, imitation, make):
    """The model with one more merge."""
    uses = collections.Counter(id(call.operation) for call in graph.calls)
    join = find(graph, merge.path)
    calls = [find(graph, path) for path in merge.paths]
    values = [
        value
        for value in join.inputs
        if (found := convolution_before(value, uses, _CONVOLUTIONS)) and found[0] in calls
    ]
    branches = [_Branch.of(value, join, uses) for value in values]
    host = branches[merge.host]
    filters = sum(branch.layer.filters for branch in branches)
    config = {**host.layer.get_config(), "filters": filters, "use_bias": True}
    layer = new_like(host.layer, config)
    kernels = []
    for branch, exact in zip(branches, merge.exact, strict=True):
        kernel = values_of(branch.layer)[0]
        shape = (*host.layer.kernel.shape[:-1], branch.layer.filters)
        if exact:
            whole = np.zeros(shape, kernel.dtype)
            starts = _inside(branch, host)
            window = tuple(
                slice(start, start + size)
                for start, size in zip(starts, branch.layer.kernel_size, strict=True)
            )
            whole[window] = kernel
        else:
            whole = keras.ops.convert_to_numpy(make(shape)).astype(kernel.dtype)
        kernels.append(whole)
    biases = [
        values_of(branch.layer)[1]
        if branch.layer.use_bias
        else np.zeros(branch.layer.filters, kernels[0].dtype)
        for branch in branches
    ]
    arrays = [np.concatenate(kernels, -1), np.concatenate(biases)]
    if not all(merge.exact):
        arrays = imitation.train(
            layer,
            arrays,
            [call.operation for call in host.between],
            (graph, old_graph),
            host.call.inputs[0],
            merge.values,
        )
    gone = {place for place, value in enumerate(join.inputs) if value in values}
    gone.remove(join.inputs.index(values[merge.host]))
    return _Merger(new, {id(host.layer): (layer, arrays)}, join.operation, gone).run()


class _Merger(Rebuilder):
    """Leaves inputs of a `Concatenate` out; what gave them is then read by nothing.

    Args:
        model: The model.
        changes: See `Rebuilder`.
        join: The `Concatenate`.
        gone: Positions of the inputs to leave out.
    """

    def __init__(self, model, changes, join, gone):
        super().__init__(model, changes)
        self._join, self._gone = join, gone

    def call(self, operation, new, args, kwargs):
        if operation is not self._join:
            return super().call(operation, new, args, kwargs)
        tensors = [t for place, t in enumerate(args[0]) if place not in self._gone]
        return new(tensors) if len(tensors) > 1 else tensors[0]
