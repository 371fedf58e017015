"""Kernel ridge regression of a dense kernel's rows from some of them (Denil et al.).

A column of the kernel is a function on the inputs. From its values at some inputs, the *chosen*
ones, those at all inputs are predicted: `W = U W_chosen` with the dictionary
`U = K[:, chosen] (K[chosen, chosen] + ridge I)^-1`, for a similarity `K` of inputs. What `U` spans
does not depend on the ridge, which only says how far `W_chosen` is followed; so if it is fitted or
trained, the ridge is a matter of conditioning alone.
"""

import math
import numbers

import numpy as np

from keras_compress import validation
from keras_compress.decomposition.factors import Factors

# Distance between channels that share a position, in widths: no similarity is left.
_APART = 100.0


class SquaredExponential:
    """Similarity of inputs by their places: `exp(-|p - p'|^2 / (2 width^2))`.

    Args:
        coords: Shape of the grid on which the inputs are, `(28, 28)` for an image, or an array
            `(inputs, axes)` of places. An input of C times as many values as the grid has places
            has C channels in each (channels last), each similar to itself alone.
        width: Width of the kernel, in steps of the grid.
        owner: Whom an error speaks of.

    Raises:
        ValueError: if `coords` is neither, or `width` not positive.
    """

    def __init__(self, coords, width=2.0, owner=None):
        self.coords = _check_coords(coords, owner)
        self.width = validation.number("width", width, 0, low_open=True, owner=owner)
        self._owner = owner

    def check_size(self, inputs):
        """Raises `ValueError` unless a kernel of so many inputs has such places."""
        grid = _is_grid(self.coords)
        places = math.prod(self.coords) if grid else len(self.coords)
        if inputs % places or (not grid and inputs != places):
            what = "a multiple of the places of `coords`" if grid else "the rows of `coords`"
            raise ValueError(
                f"{validation.prefix(self._owner)}the number of inputs must be {what}, {places}; "
                f"got {inputs} inputs. Give the grid that the input was flattened from."
            )

    def columns(self, inputs, chosen):
        """`K[:, chosen]`, `(inputs, chosen)`."""
        places = self._places(inputs)
        squares = 0.0
        # Axis by axis: no array of three axes.
        for axis in places.T:
            squares = squares + (axis[:, None] - axis[chosen]) ** 2
        return np.exp(squares / (-2.0 * self.width**2))

    def _places(self, inputs):
        if not _is_grid(self.coords):
            return np.array(self.coords, "float64")
        axes = np.indices(self.coords, "float64").reshape(len(self.coords), -1)
        channels = inputs // axes.shape[1]
        apart = np.tile(np.arange(channels) * _APART * self.width, axes.shape[1])
        return np.vstack([np.repeat(axes, channels, axis=1), apart]).T


class Covariance:
    """Similarity of inputs by what they do: the empirical covariance of samples.

    Args:
        data: Array `(samples, ..., inputs)`, of two rows or more.
        owner: Whom an error speaks of.

    Attributes:
        rows: The samples, `(rows, inputs)`, float64.

    Raises:
        ValueError: if `data` is no such array, or holds NaN or infinity.
    """

    def __init__(self, data, owner=None):
        data = np.asarray(data)
        if data.ndim < 2 or data.dtype.kind not in "fiub" or math.prod(data.shape[:-1]) < 2:
            raise ValueError(
                f"{validation.prefix(owner)}`data` must be numbers, an array (samples, inputs) of "
                f"two samples or more; got the shape {data.shape} of dtype {data.dtype}."
            )
        self.rows = data.reshape(-1, data.shape[-1]).astype("float64")
        if not np.isfinite(self.rows).all():
            raise ValueError(
                f"{validation.prefix(owner)}`data` holds NaN or infinite values; leave those "
                "samples out."
            )
        self._owner = owner

    def check_size(self, inputs):
        """Raises `ValueError` unless the samples are of so many inputs."""
        if self.rows.shape[1] != inputs:
            raise ValueError(
                f"{validation.prefix(self._owner)}`data` must be inputs of the layer, of {inputs} "
                f"values each; got {self.rows.shape[1]}."
            )

    def columns(self, inputs, chosen):
        """`K[:, chosen]`, `(inputs, chosen)`."""
        centred = self.rows - self.rows.mean(0)
        return centred.T @ centred[:, chosen] / len(centred)


def chosen_count(fraction, inputs):
    """Number of inputs chosen at a fraction, at least one."""
    # Rounded first: 0.07 * 100 is a little more than 7.
    return max(1, math.ceil(round(fraction * inputs, 6)))


def choose_inputs(inputs, count, columns=1, seed=0):
    """Random choices of inputs, one for each column; a larger one of the same seed has them all.

    Returns:
        Integer array `(columns, count)`.
    """
    # RandomState's stream is frozen: the seed alone restores it anywhere.
    generator = np.random.RandomState(seed)
    return np.array([generator.permutation(inputs)[:count] for _ in range(columns)])


def dictionary(similarity, inputs, chosen, ridge=1e-3):
    """What predicts the rows of a kernel from the chosen ones.

    Args:
        similarity: `SquaredExponential` or `Covariance`.
        inputs: Number of rows of the kernel.
        chosen: Integer array: the chosen rows.
        ridge: In units of the mean similarity of an input with itself. At 0 the chosen rows are
            predicted as they are.

    Returns:
        Array `(inputs, chosen)`, float64.
    """
    columns = similarity.columns(inputs, chosen)
    block = columns[chosen]
    values, vectors = np.linalg.eigh((block + block.T) / 2)
    values = values + ridge * np.trace(block) / len(block)
    # Directions that rounding alone gives: none of them is followed.
    kept = values > len(block) * np.finfo("float64").eps * max(values[-1], 0.0)
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=kept)
    predictors = columns @ (vectors * inverse) @ vectors.T
    if not ridge:
        predictors[chosen] = np.eye(len(chosen))
    return predictors


def prior_root(similarity, inputs, chosen):
    """A matrix `R` with `R R' = K[chosen, chosen]`: it makes white noise as smooth as `K` says."""
    block = similarity.columns(inputs, chosen)[chosen]
    values, vectors = np.linalg.eigh((block + block.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def fit_values(predictors, kernel, similarity):
    """Values at the chosen rows from which a kernel is predicted best, by least squares.

    Args:
        predictors: Array `(inputs, chosen)`: a `dictionary`.
        kernel: Array `(inputs, outputs)`.
        similarity: For `Covariance` the responses to its samples are fitted, else the kernel.

    Returns:
        Array `(chosen, outputs)`, float64.
    """
    if isinstance(similarity, Covariance):
        predictors, kernel = similarity.rows @ predictors, similarity.rows @ kernel
    return np.linalg.lstsq(predictors, kernel, rcond=None)[0]


class KernelRidgeFactors(Factors):
    """`W ~ U V`: a dictionary that nothing but the inputs' places or covariance decides, times V.

    Of the two arrays only the second is free; `kc.layers.PredictedDense` makes the first again. At
    the same rank, an SVD is nearer to the kernel, with two arrays to store.

    Reference:
        Denil, Shakibi, Dinh, Ranzato, de Freitas, "Predicting Parameters in Deep Learning", 2013.
    """

    form = "kernel_ridge"
    equation = "nr,rt->nt"
    kernel_ndims = (2,)

    @classmethod
    def shapes(cls, kernel_shape, rank):
        inputs, outputs = kernel_shape
        return [(inputs, *rank), (*rank, outputs)]

    @classmethod
    def limits(cls, kernel_shape):
        return kernel_shape[:1]

    @classmethod
    def unfoldings(cls, kernel):
        raise ValueError(
            "form='kernel_ridge' has no singular values that would say how many inputs are enough: "
            "give `rank` as an integer, or as a float in (0, 1]: the share of the inputs."
        )

    @classmethod
    def resolve_rank(cls, rank, kernel, owner=None):
        if isinstance(rank, numbers.Real) and not isinstance(rank, numbers.Integral):
            return (chosen_count(check_fraction("rank", rank, owner), len(kernel)),)
        return super().resolve_rank(rank, kernel, owner)

    @classmethod
    def fit(cls, kernel, rank, *, coords=None, data=None, width=2.0, ridge=1e-3, seed=0):
        """Factors whose second array is the best for the dictionary.

        Args:
            kernel: Array `(inputs, outputs)`.
            rank: `(r,)`: number of chosen inputs.
            coords: Places of the inputs: see `SquaredExponential`.
            data: Instead of `coords`, samples of the inputs: see `Covariance`. Responses to them
                are fitted, not the kernel.
            width: With `coords`: see there.
            ridge: See `dictionary`.
            seed: Of the choice.
        """
        if (coords is None) == (data is None):
            raise ValueError(
                "form='kernel_ridge' needs to know which inputs are similar: give coords=, the "
                "grid that they are on, or data=, samples of them; one of the two."
            )
        owner = cls.__name__
        similarity = (
            SquaredExponential(coords, width, owner) if data is None else Covariance(data, owner)
        )
        similarity.check_size(len(kernel))
        (chosen,) = choose_inputs(len(kernel), *rank, seed=validation.seed(seed, owner))
        predictors = dictionary(similarity, len(kernel), chosen, check_ridge(ridge, owner))
        values = fit_values(predictors, kernel, similarity)
        return cls(array.astype(kernel.dtype) for array in (predictors, values))


def check_fraction(name, value, owner=None):
    """A share of the inputs, in (0, 1]."""
    return validation.number(name, value, 0, 1, low_open=True, owner=owner)


def check_ridge(ridge, owner=None):
    """A ridge: a number that is not negative."""
    return validation.number("ridge", ridge, 0, owner=owner)


def _is_grid(coords):
    return not isinstance(coords[0], tuple)


def _check_coords(coords, owner):
    try:
        array = np.asarray(coords)
    except ValueError:
        # Rows of different lengths.
        array = np.asarray(None)
    if array.ndim == 1 and array.size:
        return validation.positive_ints("coords", array.tolist(), owner)
    if array.ndim == 2 and array.size and array.dtype.kind in "fiu" and np.isfinite(array).all():
        return tuple(map(tuple, array.tolist()))
    raise ValueError(
        f"{validation.prefix(owner)}`coords` must be the shape of a grid, as (28, 28), or an array "
        f"(inputs, axes) of places, all of them finite; got coords={coords!r}."
    )
