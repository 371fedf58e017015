"""PredictedDense: a dense layer that stores some rows of its kernel and predicts the others."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.decomposition.kernel_ridge import (
    Covariance,
    SquaredExponential,
    check_fraction,
    check_ridge,
    choose_inputs,
    chosen_count,
    dictionary,
    fit_values,
    prior_root,
)
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.compressed_dense import CompressedDense

KERNELS = ("squared_exponential", "covariance")


@keras.saving.register_keras_serializable(package="keras_compress")
class PredictedDense(CompressedDense):
    """Dense layer whose kernel is predicted from a random part of its rows.

    The units are split into `columns` groups. Of each group the rows of `ceil(fraction *
    input_dim)` random inputs are trained, `V`; kernel ridge regression predicts all rows from
    them: `W = U V`, with a dictionary `U` that is fixed, one for each group
    (`kc.decomposition.KernelRidgeFactors`).

    What is stored: `V` has `ceil(fraction * input_dim) * units` values. With
    `kernel="squared_exponential"` it is all that a `.keras` file, `storage_bits` and the count of
    parameters hold, since `coords`, `width`, `ridge` and `seed` make the dictionaries again; with
    `"covariance"` these are weights that are not trained. A .tflite has no way to make them: it
    stores the dictionaries and `V`, two products, or the dense kernel where that is smaller, as it
    is with the defaults. So on LiteRT this layer pays off only with few columns and a small
    fraction, and `FactorizedDense` of the same rank is as small and nearer to a trained kernel;
    what it buys is a smaller `.keras` file and fewer weights to train.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added.
        fraction: Share of the inputs whose rows are trained, in (0, 1].
        coords: For `"squared_exponential"`: shape of the grid that the input was flattened from,
            as `(28, 28)`. An input of C times as many values has C channels in each place
            (channels last), which are not similar to each other. Or an array `(input_dim, axes)`
            with the place of each input.
        columns: Number of groups of units, at most `units`; each has its own random inputs.
        kernel: `"squared_exponential"`: inputs are similar that are near, `exp(-|p - p'|^2 /
            (2 width^2))`. `"covariance"`: by their covariance in `data`.
        width: Of the squared exponential, in steps of the grid.
        ridge: In units of the mean similarity of an input with itself. At 0 the trained rows are
            rows of the kernel. What the layer can represent does not depend on it; the smaller,
            the larger are the entries of a dictionary.
        seed: Seed of the random inputs, an integer in [0, 2**32).
        data: For `"covariance"`: inputs of the layer, an array `(samples, ..., input_dim)`. They
            are not kept once it is built. `from_layer` fits the responses to them, else the kernel.
        kernel_initializer: Spread of the kernel that is predicted. `V` is a sample of the Gaussian
            process of the similarity, so that the predicted kernel is as smooth as that says.
        **kwargs: The other arguments of `keras.layers.Dense`; regularizer and constraint of the
            kernel act on `V`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if an argument is out of range, the kernel lacks its `coords` or `data`, or
            these are of another number of inputs.

    Reference:
        Denil, Shakibi, Dinh, Ranzato, de Freitas, "Predicting Parameters in Deep Learning", 2013.

    Example:

    >>> layer = PredictedDense(1000, fraction=0.25, coords=(28, 28), use_bias=False)
    >>> layer.build((None, 784))
    >>> layer.count_params(), layer.expand().count_params()
    (196000, 784000)
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        fraction=0.25,
        coords=None,
        columns=5,
        kernel="squared_exponential",
        width=2.0,
        ridge=1e-3,
        seed=0,
        data=None,
        **kwargs,
    ):
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)
        options, self._similarity = _check_options(
            self, self.units, fraction, coords, columns, kernel, width, ridge, seed, data
        )
        self.fraction, self.coords, self.columns, *rest = options.values()
        # Not `kernel`, which in a dense layer is a weight.
        self.kernel_function, self.width, self.ridge, self.seed = rest

    def build_kernel(self, input_channels):
        self._count = chosen_count(self.fraction, input_channels)
        stddev = initializer_stddev(self.kernel_initializer, input_channels, self.units)
        shape = (input_channels, self.columns * self._count)
        prior, self._dictionary = "zeros", np.zeros(shape, "float32")
        if self._similarity is not None:
            options = {"fraction": self.fraction, "columns": self.columns}
            options |= {"ridge": self.ridge, "seed": self.seed}
            chosen, predictors = _dictionaries(self._similarity, input_channels, **options)
            prior = self._prior(chosen, predictors, stddev)
            self._dictionary = np.hstack(predictors).astype("float32")
        self.values = self.add_kernel_weight("values", (self._count, self.units), prior)
        if self.kernel_function == "covariance":
            self._dictionary = self._add_dictionary(self._dictionary)
            # The samples may be large.
            self._similarity = None

    def _add_dictionary(self, dictionary):
        weight = self.add_weight(
            name="dictionary",
            shape=dictionary.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(dictionary, dtype),
            trainable=False,
        )
        self._kernel_weights.append(weight)
        return weight

    def _prior(self, chosen, predictors, stddev):
        """Initializer of the values: smooth, and such that the kernel has the spread asked for."""
        inputs = len(predictors[0])
        roots = [prior_root(self._similarity, inputs, each) for each in chosen]
        squares = [
            np.sum((each @ root) ** 2) / inputs
            for each, root in zip(predictors, roots, strict=True)
        ]
        normal = self.normal_initializer(stddev / (np.mean(squares) ** 0.5 or 1.0))

        def prior(shape, dtype=None):
            white = normal(shape, dtype=dtype)
            parts = [
                ops.matmul(ops.convert_to_tensor(root, white.dtype), white[:, part])
                for root, part in zip(roots, self._groups(), strict=True)
            ]
            return ops.concatenate(parts, axis=1)

        return prior

    def _groups(self):
        """Slices of the units, one for each column."""
        return _groups(self.units, self.columns)

    def apply_kernel(self, inputs):
        features = ops.matmul(inputs, ops.convert_to_tensor(self._dictionary, inputs.dtype))
        values = ops.convert_to_tensor(self.values)
        outputs = [
            ops.matmul(features[..., k * self._count : (k + 1) * self._count], values[:, part])
            for k, part in enumerate(self._groups())
        ]
        return outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=-1)

    def reconstruct_kernel(self):
        predictors = np.split(ops.convert_to_numpy(self._dictionary), self.columns, axis=1)
        values = ops.convert_to_numpy(self.values)
        parts = zip(predictors, self._groups(), strict=True)
        return np.hstack([each @ values[:, part] for each, part in parts])

    def kernel_macs(self):
        """Those of the exported form."""
        return min(self._stored(), self.input_channels * self.units)

    def export_form(self):
        """The dictionaries and the values; the dense layer where that is smaller."""
        self.check_built("export_form")
        return self if self._stored() < self.input_channels * self.units else self.expand()

    def _stored(self):
        """Number of values of the dictionaries and of `V`."""
        return self._count * (self.columns * self.input_channels + self.units)

    @classmethod
    def fit_kernel(
        cls,
        trained,
        /,
        *,
        fraction=0.25,
        coords=None,
        columns=5,
        kernel="squared_exponential",
        width=2.0,
        ridge=1e-3,
        seed=0,
        data=None,
    ):
        """Fits the values by least squares, for the dictionaries as they are.

        Args:
            trained: Array `(input_dim, units)`.
            fraction: As for the layer.
            coords: As for the layer.
            columns: As for the layer.
            kernel: As for the layer.
            width: As for the layer.
            ridge: As for the layer.
            seed: As for the layer.
            data: As for the layer.
        """
        inputs, units = trained.shape
        options, similarity = _check_options(
            cls.__name__, units, fraction, coords, columns, kernel, width, ridge, seed, data
        )
        _, predictors = _dictionaries(similarity, inputs, fraction, columns, ridge, seed)
        parts = zip(predictors, _groups(units, columns), strict=True)
        values = np.hstack([fit_values(u, trained[:, part], similarity) for u, part in parts])
        return options, [values, np.hstack(predictors)] if kernel == "covariance" else [values]

    @classmethod
    def from_config(cls, config):
        # The samples are not kept: the dictionaries made from them are weights, to be restored.
        if config.get("kernel") == "covariance" and config.get("data") is None:
            config = {**config, "data": _RESTORED}
        return super().from_config(config)

    def get_config(self):
        return {
            **super().get_config(),
            "fraction": self.fraction,
            "coords": self.coords,
            "columns": self.columns,
            "kernel": self.kernel_function,
            "width": self.width,
            "ridge": self.ridge,
            "seed": self.seed,
        }


#: In the place of samples: the dictionaries will be restored.
_RESTORED = object()


def _check_options(owner, units, fraction, coords, columns, kernel, width, ridge, seed, data):
    """`(options, similarity)`; no similarity where the dictionaries will be restored."""
    validation.one_of("kernel", kernel, KERNELS, owner)
    width = validation.number("width", width, 0, low_open=True, owner=owner)
    columns = validation.positive_int("columns", columns, owner)
    if columns > units:
        raise ValueError(
            f"{validation.prefix(owner)}`columns` must be at most the {units} units; got "
            f"columns={columns}. Lower it."
        )
    wanted, other = ("coords", "data") if kernel == KERNELS[0] else ("data", "coords")
    given = {"coords": coords, "data": data}
    if given[wanted] is None or given[other] is not None:
        raise ValueError(
            f"{validation.prefix(owner)}kernel={kernel!r} needs `{wanted}`, and takes no "
            f"`{other}`. Give the grid of the inputs (coords=) for 'squared_exponential', samples "
            "of them (data=) for 'covariance'."
        )
    if kernel == "squared_exponential":
        similarity = SquaredExponential(coords, width, owner)
        coords = similarity.coords
    else:
        similarity = None if data is _RESTORED else Covariance(data, owner)
    options = {
        "fraction": check_fraction("fraction", fraction, owner),
        "coords": coords,
        "columns": columns,
        "kernel": kernel,
        "width": width,
        "ridge": check_ridge(ridge, owner),
        "seed": validation.seed(seed, owner),
    }
    return options, similarity


def _dictionaries(similarity, inputs, fraction, columns, ridge, seed):
    """`(chosen, predictors)`, one entry for each column."""
    similarity.check_size(inputs)
    chosen = choose_inputs(inputs, chosen_count(fraction, inputs), columns, seed)
    return chosen, [dictionary(similarity, inputs, each, ridge) for each in chosen]


def _groups(units, columns):
    bounds = [units * k // columns for k in range(columns + 1)]
    return [slice(*pair) for pair in zip(bounds, bounds[1:], strict=False)]
