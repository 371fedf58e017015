"""`make_compact`: the 3x3 convolutions of a trained model become fitted blocks."""

import inspect

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.call_graph import CallGraph
from keras_compress.convert import check_graph, convert, rebuild
from keras_compress.distillation import Distiller, Hint, LogitsDistillation
from keras_compress.distillation.logits_distillation import output_activations
from keras_compress.layers import DepthwiseSeparableConv2D, FireModule, ShuffleUnit
from keras_compress.layers.fitted_block import kernel_and_bias, unfit
from keras_compress.profile.macs import macs
from keras_compress.pruning.criteria.lowered import LoweredKernel
from keras_compress.pruning.criteria.observer import Observer
from keras_compress.pruning.criteria.patches import PatchSampler
from keras_compress.pruning.prunable import prunable_kernels
from keras_compress.samples import Samples

OWNER = "make_compact"
_BLOCKS = {
    "depthwise_separable": DepthwiseSeparableConv2D,
    "fire": FireModule,
    "shuffle": ShuffleUnit,
}
#: Fewer input channels than this are an image's, or so few that mixtures of them lose too much.
_LEAST_CHANNELS = 8
_DISTILL = {
    "epochs": 10,
    "learning_rate": 2e-3,
    "temperature": 4.0,
    "alpha": 1.0,
    "loss": None,
    "feature_weight": 1.0,
    "batch_size": 64,
}


def make_compact(
    model,
    block="depthwise_separable",
    layers=None,
    data=None,
    distill=None,
    *,
    images=256,
    positions=10,
    seed=0,
    batch_size=64,
    verbose=1,
    **options,
):
    """Replaces the 3x3 convolutions of a trained model by cheaper blocks, fitted to them.

    | `block` | a 3x3 convolution from S to T channels runs as | fitted by |
    |---|---|---|
    | `"depthwise_separable"` | depthwise 3x3, 1x1 | a truncated SVD for each input channel |
    | `"fire"` | 1x1 to few, then 1x1 and 3x3 side by side | SVD of the input channels |
    | `"shuffle"` | grouped 1x1, shuffle, depthwise 3x3, grouped 1x1 | alternating least squares |

    All are linear inside, so that strides, padding, activation and the batch normalisation behind
    stay as they are. With `data`, each block is fitted to the responses of its convolution instead
    of the kernel, on what the blocks before it give: that keeps most of the accuracy, where the
    fit of kernels alone loses it. `distill` (or fine-tuning) brings back the rest.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        block: See above.
        layers: Names, globs, classes, layers or predicates of 3x3 convolutions; `None` for all that
            become cheaper and read at least 8 channels (the papers keep the first convolution
            too).
        data: Samples: an array, `(x, y)` or an iterable of batches; or `None`. Targets are only
            looked at in a distillation with `alpha` below 1.
        distill: Trains the blocks, and all other layers with them, to give what the model gives:
            `None` for not, a number of epochs, or a dict with any of `epochs` (10),
            `learning_rate` (2e-3, of Adam, falling to 0 by a cosine), `temperature` (4; of soft
            targets; `None` for the squared difference of the outputs, as for a regression),
            `alpha` (1: no labels; below, `loss` is needed), `loss`, `feature_weight` (1; of the
            squared differences at the outputs of the replaced convolutions, relative to the
            squares there; 0 for none), `batch_size` (64). See `kc.distillation.Distiller`.
        images: Number of samples that patches are taken from.
        positions: Number of output positions of each.
        seed: Of the draws.
        batch_size: Rows of `data` at a time in the fit.
        verbose: 1 for progress bars, 0 for none.
        **options: Of the block's `from_layer`: `depth_multiplier`; `squeeze`, `expand1x1`; or
            `groups`, `rank`.

    Returns:
        A new model, compiled like `model` if that is. Each block is a nested model of stock layers
        with the name of the convolution, which pruning, quantization and export open.

    Raises:
        ValueError: if there is no such convolution or `layers` names something else, an option is
            unknown or out of range, or data is missing or does not fit.

    Reference:
        Howard et al., "MobileNets", 2017; Iandola et al., "SqueezeNet", 2016; Zhang, Zhou, Lin,
        Sun, "ShuffleNet", 2018.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(16, 3, activation="relu", name="conv1"),
    ...     keras.layers.Conv2D(32, 3, activation="relu", name="conv2"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ... ])
    >>> small = make_compact(model)
    >>> [layer.name for layer in small.get_layer("conv2").layers[1:]]
    ['conv2_depthwise', 'conv2_depthwise_act', 'conv2_pointwise', 'conv2_pointwise_act']
    """
    check_graph(model, OWNER)
    cls = _BLOCKS[validation.one_of("block", block, _BLOCKS, OWNER)]
    _check_options(cls, options)
    distill = _distillation(distill, data)
    sites = _sites(model, layers, cls, options)
    if data is None:
        blocks = [cls.from_layer(site.layer, **site.geometry(cls), **options) for site in sites]
        made = [site.opened(new) for site, new in zip(sites, blocks, strict=True)]
    else:
        samples = Samples(model, data, batch_size, owner=OWNER)
        sampler = PatchSampler(samples, images, positions, seed, OWNER)
        made = _fitted(model, cls, sites, sampler, options, verbose)
    compact = _with(model, sites, made)
    if distill is not None:
        _train(model, compact, sites, data, distill, verbose)
    return compact


class _Site:
    """A 3x3 convolution and its calls in the graph of the model."""

    def __init__(self, layer, calls):
        self.layer, self.calls = layer, calls
        self.path = calls[0].path
        self.shape = calls[0].inputs[0].shape

    @property
    def fits(self):
        """Whether a block can take its place."""
        same = all(call.inputs[0].shape == self.shape for call in self.calls)
        return same and unfit(self.layer, ((3, 3),)) is None

    def geometry(self, cls):
        """What `from_layer` needs to know of the input."""
        if cls is not FireModule:
            return {}
        first = self.layer.data_format == "channels_first"
        size = self.shape[2:] if first else self.shape[1:3]
        return {} if None in size else {"input_size": size}

    def opened(self, block):
        """The stock layers of a block, as a model for the input of this place."""
        return block.expand(self.shape)

    @property
    def channels(self):
        return self.layer.kernel.shape[2]


def _check_options(cls, options):
    parameters = inspect.signature(cls.from_layer).parameters
    known = [name for name in parameters if name not in ("layer", "options")]
    known = [name for name in known if name not in ("patches", "responses", "input_size")]
    for name in options:
        if name not in known:
            raise ValueError(
                f"{OWNER}: {cls.__name__} has no option {name!r}."
                f"{validation.did_you_mean(name, known)} It has: {', '.join(known)}."
            )


def _sites(model, layers, cls, options):
    found = {}
    for call in CallGraph(model).calls:
        if type(call.operation) is keras.layers.Conv2D:
            found.setdefault(id(call.operation), []).append(call)
    sites = {key: _Site(calls[0].operation, calls) for key, calls in found.items()}
    fitting = {key: site for key, site in sites.items() if site.fits}
    what = "a compact form: 3x3 Conv2D of one group, without dilation, for one size of input"
    chosen = matching.with_form(model, layers, lambda x: id(x) in fitting, what, OWNER)
    wanted = {id(layer) for layer in chosen}
    # In the order in which they run.
    sites = [site for key, site in fitting.items() if key in wanted]
    if layers is None:
        sites = [site for site in sites if site.channels >= _LEAST_CHANNELS]
        sites = [site for site in sites if _is_cheaper(site, cls, options)]
        if not sites:
            raise ValueError(
                f"{OWNER}: no 3x3 convolution of model '{model.name}' reads at least "
                f"{_LEAST_CHANNELS} channels and becomes cheaper as {cls.__name__} with "
                f"{options or 'its defaults'}. Name the `layers`, or change the options."
            )
    return sites


def _is_cheaper(site, cls, options):
    """Whether the block takes fewer multiply-accumulates."""
    # On a map of fixed size, as both grow with it alike.
    shape = tuple(32 if size is None else size for size in site.shape[1:])
    # Zeros are fitted in no time.
    config = {**site.layer.get_config(), "kernel_initializer": "zeros"}
    layer = keras.layers.Conv2D.from_config(config)
    dense = keras.Sequential([keras.Input(shape), layer])
    sized = {"input_size": (32, 32)} if cls is FireModule else {}
    block = cls.from_layer(layer, **{**sized, **site.geometry(cls)}, **options)
    return block.macs((None, *shape)) < macs(dense)


def _with(model, sites, made):
    new = {id(site.layer): block for site, block in zip(sites, made, strict=False)}
    if not new:
        return model
    return convert(model, {lambda layer: id(layer) in new: lambda layer: new[id(layer)]})


def _fitted(model, cls, sites, sampler, options, verbose):
    """The opened blocks, each fitted on what the model with those before it gives."""
    targets = [[] for _ in sites]
    weights = [kernel_and_bias(site.layer) for site in sites]
    graph = CallGraph(model)
    lowered = [_lowered(model, graph, site.layer) for site in sites]
    for place, (rows,) in sampler.rows(graph, lowered):
        kernel, bias = weights[place]
        targets[place].append(rows @ kernel.reshape(rows.shape[1], -1) + bias)
    bar = keras.utils.Progbar(len(sites), verbose=verbose, unit_name="layer")
    made = []
    for number, site in enumerate(sites):
        current = _with(model, sites, made)
        graph = CallGraph(current)
        call = next(call for call in graph.calls if call.path == site.path)
        one = _lowered(current, graph, call.operation)
        patches = np.concatenate([rows for _, (rows,) in sampler.rows(graph, [one])])
        new = cls.from_layer(
            site.layer,
            patches=patches,
            responses=np.concatenate(targets[number]),
            **site.geometry(cls),
            **options,
        )
        made.append(site.opened(new))
        bar.update(number + 1)
    return made


def _lowered(model, graph, layer):
    kernels = {id(kernel.variable): kernel for kernel in prunable_kernels(model)}
    return LoweredKernel(kernels[id(layer.kernel)], graph.calls, OWNER)


# Distillation.


def _distillation(distill, data):
    if distill is None:
        return None
    given = distill if isinstance(distill, dict) else {"epochs": distill}
    for name in given:
        validation.one_of("distill", name, _DISTILL, OWNER)
    given = {**_DISTILL, **given}
    for name in ("epochs", "batch_size"):
        validation.positive_int(f"distill: {name}", given[name], OWNER)
    validation.number("distill: feature_weight", given["feature_weight"], 0, owner=OWNER)
    if data is None:
        raise ValueError(
            f"{OWNER}: `distill` needs samples to imitate the model on: give data=x, or (x, y)."
        )
    return given


def _train(model, compact, sites, data, options, verbose):
    """Trains `compact`, in place, to give what `model` gives."""
    # A copy, since a distiller freezes its teacher.
    teacher = rebuild(model, {})
    losses, weights = _feature_losses(model, sites, data, options)
    losses.insert(0, _output_loss(model, options["temperature"]))
    weights.insert(0, 1.0)
    compiled = compact.get_compile_config() if compact.compiled else None
    distiller = Distiller(teacher, compact, losses, weights, alpha=options["alpha"])
    x, y = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    arrays = hasattr(keras.tree.flatten(x)[0], "shape") and not hasattr(x, "element_spec")
    rate = options["learning_rate"]
    if arrays:
        rows = len(keras.tree.flatten(x)[0])
        steps = options["epochs"] * -(-rows // options["batch_size"])
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = options["loss"] if options["alpha"] < 1 else None
    distiller.compile(keras.optimizers.Adam(rate), loss)
    common = {"epochs": options["epochs"], "verbose": 2 * bool(verbose)}
    if arrays:
        y = y if options["alpha"] < 1 else None
        distiller.fit(x, y, batch_size=options["batch_size"], **common)
    else:
        distiller.fit(data, **common)
    if compiled is not None:
        compact.compile_from_config(compiled)


def _output_loss(model, temperature):
    if temperature is None:
        return Hint()
    logits = "softmax" not in output_activations(model)
    return LogitsDistillation(temperature, teacher_from_logits=logits, student_from_logits=logits)


def _feature_losses(model, sites, data, options):
    """Losses at the outputs of the replaced convolutions, and their weights."""
    # Only layers of the outermost model have an output that can be had.
    outer = [s for s in sites if len(s.path) == 1 and len(s.calls) == 1]
    if not options["feature_weight"] or not outer:
        return [], []
    graph = CallGraph(model)
    values = [next(c for c in graph.calls if c.path == site.path).output for site in outer]
    inputs, _ = next(iter(Samples(model, data, options["batch_size"], owner=OWNER)))
    maps = Observer(graph, values).activations(inputs)
    squares = [float(np.square(m.astype("float64")).sum() / len(m)) or 1.0 for m in maps]
    share = 2.0 * options["feature_weight"] / len(outer)
    losses = [Hint(site.layer.name, site.layer.name, adapter=None) for site in outer]
    return losses, [share / square for square in squares]
