"""`net2wider`: a wider model with the same outputs."""

import numpy as np

from keras_compress import validation
from keras_compress.pruning.surgery import ChannelGraph, Cutter


def net2wider(model, layer, new_width, noise=0.0, *, seed=0):
    """Returns a copy of a model in which a layer is wider, with the same outputs.

    New channels are copies of random ones, and what reads a channel and its copies has its weights
    divided by their number. They are followed through the whole model (batch normalization,
    depthwise layers, `Flatten`, concatenations, gates); layers whose outputs are added to the
    layer's, as in residual blocks, get wider with it. Copies come right after their channel.

    Training starts where `model` stands, but copies get equal gradients as long as they are equal:
    with `noise` they part. (Dropout parts them too.)

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        layer: Name of the layer, with those of the models around it (`"encoder/conv"`;
            `"attention/heads"` for heads), or the layer.
        new_width: Number of channels that it is to have (filters, units, heads), more than now.
        noise: Standard deviation of normal noise on the incoming weights of the copies, as a share
            of the kernel's own; the outputs are then equal up to it.
        seed: Seed of the choice and of the noise.

    Returns:
        A model of the same layers and names, compiled like `model` if that is compiled.

    Raises:
        ValueError: if the model has no such layer, its channels cannot be copied (outputs of the
            model, read by an unknown layer, by a LayerNormalization or by a product of two
            activations), or `new_width` is not wider, or not a width that channels tied to one
            another allow.

    Reference:
        Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", 2016.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> wide = kc.distillation.net2wider(model, "conv", 6)
    >>> wide.get_layer("conv").filters
    6
    >>> x = np.ones((1, 8, 8, 1), "float32")
    >>> bool(np.allclose(model(x), wide(x), atol=1e-5))
    True
    """
    noise = validation.number("noise", noise, 0, owner="net2wider")
    graph = ChannelGraph(model)
    producer = _producer(graph, layer)
    rng = np.random.default_rng(seed)
    counts = np.ones(graph.count, int)
    chosen = _chosen(graph, producer, new_width, rng)
    np.add.at(counts, chosen, 1)
    return _Widener(graph, counts, noise, rng).run()


def _producer(graph, layer):
    producers = {producer.name: producer for producer in graph.producers}
    if not isinstance(layer, str):
        names = [name for name, producer in producers.items() if producer.layer is layer]
        layer = names[0] if names else getattr(layer, "name", repr(layer))
    if layer not in producers:
        raise ValueError(
            f"net2wider: the model has no layer '{layer}' that makes channels."
            f"{validation.did_you_mean(layer, producers)} It has: {', '.join(producers)}."
        )
    return producers[layer]


def _chosen(graph, producer, new_width, rng):
    """Numbers of the channels to copy, each as often as it comes."""
    width, name = len(producer.channels), producer.name
    free = producer.channels[graph.copiable[producer.channels]]
    if not len(free):
        raise ValueError(
            f"net2wider: no channel of '{name}' can be copied: they are outputs of the model, or "
            "what reads them is not known, normalizes over them, multiplies them by other "
            "activations, or orders them in several ways. Choose another layer."
        )
    new_width = validation.positive_int("new_width", new_width, "net2wider")
    numbers, sizes = np.unique(free, return_counts=True)
    # Channels of one number (groups that stay alike, elements that a Reshape makes channels of)
    # only come together.
    step = int(sizes.max())
    if (sizes != step).any():
        raise ValueError(
            f"net2wider: channels of '{name}' are tied to one another in sets of different sizes, "
            f"{sorted(set(sizes.tolist()))}. Choose another layer."
        )
    if new_width <= width or (new_width - width) % step:
        tied = f" by a multiple of {step}, since so many are tied to one another" * (step > 1)
        raise ValueError(
            f"net2wider: `new_width` must be more than the {width} channels of '{name}'{tied}; got "
            f"new_width={new_width}."
        )
    return rng.choice(numbers, (new_width - width) // step)


class _Widener(Cutter):
    """A `Cutter` that puts noise on the incoming weights of copies."""

    def __init__(self, graph, counts, noise, rng):
        super().__init__(graph, counts)
        self._places = {id(producer.variable): producer.place for producer in graph.producers}
        self._noise, self._rng = noise, rng

    def taken(self, variable):
        array = super().taken(variable)
        place = self._places.get(id(variable))
        if self._noise == 0 or place is None:
            return array
        order = self.order(self.graph.positions(variable)[place])
        copies = np.ones(len(order), bool)
        copies[np.unique(order, return_index=True)[1]] = False
        along = [1] * array.ndim
        along[place] = -1
        noise = self._rng.normal(0, self._noise * array.std(), array.shape)
        return (array + noise * copies.reshape(along)).astype(array.dtype)
