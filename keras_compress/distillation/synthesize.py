"""Synthesis of samples from metadata, without any of the data."""

import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.call_graph import CallGraph
from keras_compress.distillation.input_derivatives import check_inputs, input_gradient
from keras_compress.distillation.metadata import Activations, Metadata
from keras_compress.pruning.criteria.observer import compiled, finite
from keras_compress.samples import structured

# Adam's.
_BETAS, _EPSILON = (0.9, 0.999), 1e-7


def synthesize(
    model,
    metadata,
    n,
    *,
    bounds=None,
    steps=300,
    learning_rate=0.05,
    batch_size=256,
    seed=0,
):
    """Makes samples from noise whose activations have the recorded statistics.

    Each sample is meant for one class, in the classes' recorded shares. Adam minimises over the
    samples of a batch, all steps in one compiled loop, the distance of their statistics from the
    recorded ones (`Metadata.distance`). A student is then trained on what the model gives for them.

    Args:
        model: The model that the metadata are of.
        metadata: `Metadata`, or the path of a file that it was saved to.
        n: Number of samples.
        bounds: `(low, high)` that the inputs keep to: they start uniform between the two. `None`:
            they start standard normal.
        steps: Steps of Adam.
        learning_rate: Its step size, falling to 0 linearly; in units of the inputs.
        batch_size: Samples at a time; statistics are those of a batch.
        seed: Integer, for the noise.

    Returns:
        Float32 array `(n, ...)` in random order; nested as the model takes its inputs.

    Raises:
        ValueError: if the metadata are not of this model, its inputs are integers or have open
            sizes, and for numbers out of range.

    Reference:
        R. G. Lopes, S. Fenu, T. Starner, "Data-Free Knowledge Distillation for Deep Neural
        Networks", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, name="logits")])
    >>> x = np.random.default_rng(0).normal(size=(200, 8))
    >>> metadata = kc.distillation.record_metadata(teacher, x, kind="top")
    >>> synthetic = kc.distillation.synthesize(teacher, metadata, n=100, steps=50, seed=0)
    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    >>> distiller = kc.distillation.Distiller(teacher, student, alpha=1.0)
    >>> distiller.compile("adam")
    >>> history = distiller.fit(synthetic, verbose=0)
    """
    n, steps, batch_size = (
        validation.positive_int(name, value, "synthesize")
        for name, value in (("n", n), ("steps", steps), ("batch_size", batch_size))
    )
    rate = validation.number("learning_rate", learning_rate, 0, low_open=True, owner="synthesize")
    rng = np.random.default_rng(validation.seed(seed, "synthesize"))
    bounds = _check_bounds(bounds)
    metadata = metadata if isinstance(metadata, Metadata) else Metadata.load(metadata)
    metadata.check_model(model)
    check_inputs(model, "synthesize")
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if None in [size for shape in shapes for size in shape]:
        raise ValueError(
            f"synthesize: the inputs of model '{model.name}' have open sizes, {shapes}; build it "
            "on a keras.Input of the size to make."
        )
    activations = Activations(CallGraph(model), metadata)
    run = compiled(_descent(activations, metadata, bounds, steps, rate))

    # All batches have one size, for one compiled loop.
    batches = -(-n // batch_size)
    size = -(-n // batches)
    made = []
    for _ in range(batches):
        classes = _shares(metadata.counts, size)
        members = np.eye(len(metadata.classes), dtype="float32")[classes]
        starts = [_noise(rng, (size, *shape), bounds) for shape in shapes]
        found = run(starts, ops.convert_to_tensor(members))
        order = rng.permutation(size)
        made.append([ops.convert_to_numpy(tensor)[order] for tensor in found])
    inputs = [np.concatenate(parts)[:n] for parts in zip(*made, strict=True)]
    for array in inputs:
        finite(array, "a synthesised sample", "synthesize")
    return structured(model, inputs)


def _descent(activations, metadata, bounds, steps, rate):
    """Function `(inputs, members) -> inputs` of Adam's steps."""

    def descend(inputs, members):
        def loss(x):
            return metadata.loss(activations(x)[0], members)

        def step(index, state):
            x, means, squares = state
            index = ops.cast(index, "float32")
            gradients = input_gradient(loss, list(x))
            means = [_BETAS[0] * m + (1 - _BETAS[0]) * g for m, g in _pairs(means, gradients)]
            squares = [
                _BETAS[1] * s + (1 - _BETAS[1]) * ops.square(g)
                for s, g in _pairs(squares, gradients)
            ]
            corrections = [1.0 - beta ** (index + 1.0) for beta in _BETAS]
            size = rate * (1.0 - index / steps)
            moved = []
            for value, mean, square in zip(x, means, squares, strict=True):
                root = ops.sqrt(square / corrections[1]) + _EPSILON
                value = value - size * (mean / corrections[0]) / root
                moved.append(value if bounds is None else ops.clip(value, *bounds))
            return moved, means, squares

        zeros = [ops.zeros_like(tensor) for tensor in inputs]
        return ops.fori_loop(0, steps, step, (list(inputs), zeros, list(zeros)))[0]

    return descend


def _noise(rng, shape, bounds):
    noise = rng.normal(size=shape) if bounds is None else rng.uniform(*bounds, shape)
    return ops.convert_to_tensor(noise.astype("float32"))


def _pairs(one, two):
    return zip(one, two, strict=True)


def _shares(counts, size):
    """Places of classes of `size` samples: by their shares, rounded by largest remainders."""
    exact = counts / counts.sum() * size
    whole = np.floor(exact).astype(int)
    rest = size - whole.sum()
    whole[np.argsort(whole - exact, kind="stable")[:rest]] += 1
    return np.repeat(np.arange(len(counts)), whole)


def _check_bounds(bounds):
    if bounds is None:
        return None
    numbers = [float(value) for value in np.asarray(bounds, "float64").reshape(-1)]
    if len(numbers) != 2 or not np.isfinite(numbers).all() or numbers[0] >= numbers[1]:
        raise ValueError(
            "synthesize: `bounds` must be (low, high), two finite numbers in rising order, or "
            f"None; got bounds={bounds!r}."
        )
    return tuple(numbers)
