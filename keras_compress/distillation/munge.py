"""MUNGE: many synthetic samples close to few real ones, for a student to be labelled on."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from keras_compress import validation


def munge(
    x,
    size_multiplier=10,
    swap_probability=0.2,
    local_variance=5.0,
    seed=None,
    *,
    discrete=None,
):
    """Makes synthetic samples by mixing the values of each sample with its nearest neighbour's.

    Sample after sample, `e` meets its nearest neighbour `e'`, and in each column with probability
    `swap_probability` the two values change: continuous ones are drawn from
    `N(e'_a, |e_a - e'_a| / local_variance)` and `N(e_a, |e_a - e'_a| / local_variance)`, discrete
    ones are swapped. This is done `size_multiplier` times, from the data anew each time. So each
    set has exactly the discrete values of the data, column by column, and the means of continuous
    columns in expectation.

    Neighbours are those of the data as given: by Euclidean distance, with continuous columns scaled
    to `[0, 1]` and a distance of 1 between different discrete values.

    The samples have no labels: let a teacher give them, such as an `Ensemble`.

    Args:
        x: Real numbers `(samples, ...)`, at least 2 samples. Each number of a sample is a column.
        size_multiplier: Number of sets to make.
        swap_probability: 0 to 1; 0.1 to 0.5 in the paper. With 0 the data come back.
        local_variance: What the distance of two values is divided by to give the standard deviation
            of the draws, above 0: larger values stay closer to the data.
        seed: Integer, for samples that can be repeated; or a `numpy.random.Generator`.
        discrete: Which columns are discrete: a boolean array of a sample's shape, or indices of
            columns of `(samples, columns)`. By default all if `x` holds integers or booleans, else
            none.

    Returns:
        Array `(size_multiplier * samples, ...)`, one set after the other, each in the order of the
        data. It has the dtype of `x`, or float32 if `x` holds integers in continuous columns.

    Raises:
        ValueError: for fewer than 2 samples, values that are not finite real numbers, columns that
            are not there, and numbers out of range.

    Reference:
        C. Bucila, R. Caruana, A. Niculescu-Mizil, "Model Compression", 2006.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    >>> synthetic = kc.distillation.munge(x, size_multiplier=3, seed=0)
    >>> synthetic.shape
    (150, 4)
    >>> def net(units, name):
    ...     return keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(2)], name=name
    ...     )
    >>> teachers = [net(32, "a"), net(32, "b")]
    >>> loss = kc.distillation.LogitRegression(normalize=False)
    >>> distiller = kc.distillation.Distiller(teachers, net(2, "student"), loss, alpha=1.0)
    >>> distiller.compile("adam")
    >>> history = distiller.fit(synthetic, verbose=0)
    """
    shape, rows, discrete = _check(np.asarray(x), discrete)
    sets = validation.positive_int("size_multiplier", size_multiplier, "munge")
    probability = validation.number("swap_probability", swap_probability, 0, 1, owner="munge")
    divisor = validation.number("local_variance", local_variance, 0, low_open=True, owner="munge")
    rng = np.random.default_rng(seed)
    neighbours = nearest_neighbours(rows, discrete)
    made = np.repeat(rows[None], sets, axis=0)
    for first in _rounds(neighbours):
        _meet(made, first, neighbours[first], discrete, probability, divisor, rng)
    return made.reshape(sets * len(rows), *shape)


def nearest_neighbours(rows, discrete):
    """The index of each row's nearest other row.

    Args:
        rows: Array `(samples, columns)`.
        discrete: Which columns are discrete, booleans `(columns,)`.

    Returns:
        Integers `(samples,)`.
    """
    continuous = rows[:, ~discrete].astype("float64")
    low, high = continuous.min(axis=0), continuous.max(axis=0)
    parts = [(continuous - low) / np.where(high > low, high - low, 1.0)]
    for column in rows[:, discrete].T:
        # Two of these unit vectors differ in two places, by a squared distance of 1.
        parts.append((column[:, None] == np.unique(column)) / np.sqrt(2.0))
    places = np.concatenate(parts, axis=1)
    return NearestNeighbors(n_neighbors=1).fit(places).kneighbors(return_distance=False)[:, 0]


def _rounds(neighbours):
    """Samples whose pairs have no sample in common, round by round.

    To go through the rounds is to go through the samples in their order: a pair comes in the first
    round after those of all earlier pairs that it shares a sample with.
    """
    busy_until = np.zeros(len(neighbours), int).tolist()
    rounds = []
    for sample, other in enumerate(neighbours.tolist()):
        turn = max(busy_until[sample], busy_until[other])
        busy_until[sample] = busy_until[other] = turn + 1
        rounds.append(turn)
    rounds = np.array(rounds)
    order = np.argsort(rounds, kind="stable")
    return np.split(order, np.cumsum(np.bincount(rounds))[:-1])


def _meet(made, first, second, discrete, probability, divisor, rng):
    """Changes the values of pairs of rows in all sets, in place."""
    one, two = made[:, first], made[:, second]
    change = rng.random(one.shape) < probability
    new_one, new_two = two, one
    if not discrete.all():
        noise = rng.standard_normal((2, *one.shape), dtype="float32")
        spread = np.where(discrete, 0, np.abs(one - two) / divisor).astype(made.dtype)
        new_one = two + (spread * noise[0]).astype(made.dtype)
        new_two = one + (spread * noise[1]).astype(made.dtype)
    made[:, first] = np.where(change, new_one, one)
    made[:, second] = np.where(change, new_two, two)


def _check(x, discrete):
    """Shape of a sample, rows `(samples, columns)`, and which columns are discrete."""
    whole = x.dtype.kind in "biu"
    if x.ndim < 2 or len(x) < 2 or not x[0].size or not (whole or x.dtype.kind == "f"):
        raise ValueError(
            "munge: `x` must be real numbers (samples, ...) of at least 2 samples; got "
            f"{x.dtype} of shape {x.shape}. Code categories as integers, such as by "
            "np.unique(column, return_inverse=True)."
        )
    if not whole and not np.isfinite(x).all():
        raise ValueError("munge: `x` holds NaN or infinite values; fill them or leave rows out.")
    shape = x.shape[1:]
    rows = x.reshape(len(x), -1)
    if discrete is None:
        return shape, rows, np.full(rows.shape[1], whole)
    given = np.asarray(discrete)
    if given.dtype == bool and given.shape == shape:
        mask = given.reshape(-1)
    elif len(shape) == 1 and (given.dtype.kind in "iu" and given.ndim == 1 or not given.size):
        wrong = [int(index) for index in given if not -shape[0] <= index < shape[0]]
        if wrong:
            raise ValueError(f"munge: `discrete` names columns {wrong} of {shape[0]} columns.")
        mask = np.zeros(shape[0], bool)
        mask[given.astype(int)] = True
    else:
        raise ValueError(
            f"munge: `discrete` must be booleans of a sample's shape {shape}, or indices of the "
            f"columns of (samples, columns); got discrete={discrete!r}."
        )
    if whole and not mask.all():
        rows = rows.astype("float32")
    return shape, rows, mask
