"""Objectives of a factorization: what makes a kernel in factors a good one."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_compress import matching
from keras_compress.call_graph import CallGraph
from keras_compress.convert import rebuild
from keras_compress.decomposition.decompose import FORMS
from keras_compress.decomposition.linalg import leading_eigenvectors
from keras_compress.decomposition.refit import refit
from keras_compress.decomposition.response_regression import (
    ChannelRegression,
    FactorsRegression,
    relu_regression,
)
from keras_compress.pruning.criteria.lowered import LoweredKernel
from keras_compress.pruning.criteria.observer import sample_loss
from keras_compress.pruning.criteria.patches import PatchSampler
from keras_compress.pruning.criteria.weight_derivatives import WeightDerivatives
from keras_compress.pruning.prunable import prunable_kernels
from keras_compress.samples import Samples


@dataclasses.dataclass(frozen=True)
class Fit:
    """A kernel in factors.

    Attributes:
        factors: `Factors`.
        bias: New bias, or `None` to keep what there is.
        error: Relative error, see `FactorizedLayer`.
    """

    factors: object
    bias: object
    error: float


class Weights:
    """Kernels by themselves: the Frobenius norm of the difference."""

    def spectra(self, site, form):
        """For each rank of a form, what its terms are worth: see `Factors.spectra`."""
        return FORMS[form].spectra(site.kernel)

    def fit(self, site, form, rank):
        """The `Fit` of a form and explicit ranks."""
        factors = FORMS[form].fit(site.kernel, rank)
        return Fit(factors, None, factors.error(site.kernel))

    def settle(self, site, fit):
        """Told what takes the place of a layer, in the order in which the layers run."""


class Gradient(Weights):
    """Each weight as important as the loss's gradients in it are large (Denton et al.).

    The measure is `sum_p a_p^2 (W_p - W^_p)^2` with `a_p^2` the sum over samples of the squared
    gradients.
    """

    def __init__(self, model, sites, samples, loss, owner):
        variables = [site.layer.kernel for site in sites]
        derivatives = WeightDerivatives(
            CallGraph(model), variables, sample_loss(model, loss, owner)
        )
        sums = [np.zeros(tuple(v.shape)) for v in variables]
        for inputs, targets in samples:
            for total, part in zip(
                sums, derivatives.squared_gradients(inputs, targets), strict=True
            ):
                total += ops.convert_to_numpy(part)
        self._squares = {
            id(site.layer): total / (total.mean() or 1.0)
            for site, total in zip(sites, sums, strict=True)
        }

    def fit(self, site, form, rank):
        kernel = site.kernel.astype("float64").reshape(-1, site.kernel_shape[-1])
        squares = self._squares[id(site.layer)].reshape(kernel.shape)
        starts = (
            FORMS[form].fit(site.kernel, rank),
            _separable_start(kernel, squares, site, form, rank),
        )
        fits = []
        for start in starts:
            factors = refit(start, lambda w: squares * w, squares * kernel)
            difference = kernel - factors.reconstruct().reshape(kernel.shape)
            error = _root(np.sum(squares * difference**2), squares * kernel**2)
            fits.append(Fit(factors, None, error))
        return min(fits, key=lambda fit: fit.error)


def _separable_start(kernel, squares, site, form, rank):
    """Factors of the kernel times the nearest separable weights, divided by these again."""
    left, _, right = np.linalg.svd(np.sqrt(squares), full_matrices=False)
    rows, columns = (
        np.maximum(np.abs(vector), 1e-3 * np.abs(vector).max()) for vector in (left[:, 0], right[0])
    )
    if form != "svd":
        # Only the outputs' weights can be divided out of any form.
        rows = np.ones(len(rows))
    scaled = (rows[:, None] * kernel * columns).reshape(site.kernel_shape)
    factors = FORMS[form].fit(scaled, rank).scaled(1.0 / columns)
    if form != "svd":
        return factors
    first, last = factors.arrays
    return type(factors)((first / rows.reshape(*first.shape[:-1], 1), last))


class _Sampled(Weights):
    """Base of objectives that look at the inputs of the layers, at sampled positions."""

    def __init__(self, model, sites, sampler):
        self._sampler = sampler
        self._graph = CallGraph(model)
        self._lowered = _lowered(model, self._graph, [site.layer for site in sites])
        self._places = {id(site.layer): place for place, site in enumerate(sites)}
        found = [[] for _ in sites]
        kernels = [site.kernel.reshape(-1, site.kernel_shape[-1]) for site in sites]
        for place, (rows,) in sampler.rows(self._graph, self._lowered):
            found[place].append(rows @ kernels[place])
        self._products = [np.concatenate(parts) for parts in found]

    def products(self, site):
        """What the kernel gave in the original model: `(samples, outputs)`, without the bias."""
        return self._products[self._places[id(site.layer)]]

    def rows(self, site):
        """What the factors will be multiplied with: `(samples, inputs)`."""
        return _rows(self._sampler, self._graph, self._lowered[self._places[id(site.layer)]])


class Covariance(_Sampled):
    """The responses to the layer's inputs, by their second moment (Denton et al.)."""

    def spectra(self, site, form):
        return _spectra(site, form, self.products(site), super().spectra)

    def fit(self, site, form, rank):
        responses = self.products(site)
        if form == "svd":
            # `S^(-1/2)` times the truncated SVD of `S^(1/2) W` is W on these directions.
            basis = leading_eigenvectors(responses.T @ responses, *rank)
            factors = _channel_factors(site, basis, basis.T)
            missed = responses - (responses @ basis) @ basis.T
            return Fit(factors, None, _root(np.sum(missed**2), responses**2))
        rows = self.rows(site)
        moment = rows.T @ rows / len(rows)
        kernel = site.kernel.astype("float64").reshape(len(moment), -1)
        start = FORMS[form].fit(site.kernel, rank)
        factors = refit(start, moment.__matmul__, moment @ kernel)
        missed = responses - rows @ factors.reconstruct().reshape(kernel.shape)
        return Fit(factors, None, _root(np.sum(missed**2), responses**2))


class Response(_Sampled):
    """The responses with a new bias, after ReLU where one follows (Zhang et al., Jaderberg et al.).

    Where a batch normalization follows, responses are those behind it.
    """

    def __init__(self, model, sites, sampler):
        super().__init__(model, sites, sampler)
        for site in sites:
            site.adds_bias = not site.layer.use_bias
        self._following = {id(site.layer): _scales(site) for site in sites}

    def spectra(self, site, form):
        scale, _, _ = self._following[id(site.layer)]
        responses = self.products(site) * scale
        return _spectra(site, form, responses - responses.mean(0), super().spectra)

    def fit(self, site, form, rank):
        scale, shift, relu = self._following[id(site.layer)]
        shift = site.bias * scale + shift
        targets = self.products(site) * scale + shift
        if form == "svd":
            regression = ChannelRegression(self._inputs(site) * scale + shift, *rank)
        else:
            scaled = site.kernel.astype("float64") * scale
            regression = FactorsRegression(self.rows(site), FORMS[form].fit(scaled, rank))
        if relu:
            solution, squared = relu_regression(regression, targets)
            base = np.maximum(targets, 0.0)
        else:
            squared = np.sum((targets - regression.fit(targets)) ** 2)
            solution, base = regression.solution, targets
        if form == "svd":
            left, right, bias = solution
            bias = bias + shift @ left @ right
            factors = _channel_factors(site, scale[:, None] * left, right)
        else:
            factors, bias = solution
        # Back before the batch normalization; its shift has the layer's own bias in it already.
        bias = (bias - self._following[id(site.layer)][1]) / scale
        error = _root(squared, (base - base.mean(0)) ** 2)
        return Fit(factors.scaled(1.0 / scale), bias, error)

    def _inputs(self, site):
        """What the original kernel gives on the inputs of the factors."""
        return self.products(site)


class AsymmetricResponse(Response):
    """As `Response`, on the outputs of the layers before as they are factorized."""

    def __init__(self, model, sites, sampler):
        super().__init__(model, sites, sampler)
        places = {id(layer): n for n, layer in enumerate(matching.leaf_layers(model))}
        bare = [site.layer for site in sites if site.adds_bias]
        self._copy = rebuild(model, {id(layer): _with_bias(layer) for layer in bare})
        leaves = matching.leaf_layers(self._copy)
        copies = [leaves[places[id(site.layer)]] for site in sites]
        self._copies = {id(site.layer): copy for site, copy in zip(sites, copies, strict=True)}
        self._copied_graph = CallGraph(self._copy)
        self._copied_lowered = _lowered(self._copy, self._copied_graph, copies)

    def rows(self, site):
        lowered = self._copied_lowered[self._places[id(site.layer)]]
        return _rows(self._sampler, self._copied_graph, lowered)

    def settle(self, site, fit):
        copy = self._copies[id(site.layer)]
        copy.kernel.assign(fit.factors.reconstruct())
        copy.bias.assign(fit.bias)

    def _inputs(self, site):
        return self.rows(site) @ site.kernel.reshape(-1, site.kernel_shape[-1])


_OF_RESPONSES = {
    "covariance": Covariance,
    "response": Response,
    "response_asym": AsymmetricResponse,
}
OBJECTIVES = ("weights", "gradient", *_OF_RESPONSES)


def objective_of(name, model, sites, data, *, loss, images, positions, seed, batch_size, owner):
    """The objective of a name, with what it needs to know of the data.

    Args:
        name: One of `OBJECTIVES`.
        model: The model.
        sites: The `Site`s to be factorized, in the order in which they run.
        data: As `Samples` takes it.
        loss: Of `"gradient"`.
        images, positions, seed: As `PatchSampler` takes them.
        batch_size: Rows of the data at a time.
        owner: Name that error messages begin with.
    """
    if name == "weights":
        return Weights()
    samples = Samples(model, data, batch_size, name == "gradient", owner)
    if name == "gradient":
        return Gradient(model, sites, samples, loss, owner)
    return _OF_RESPONSES[name](model, sites, PatchSampler(samples, images, positions, seed, owner))


def _lowered(model, graph, layers):
    kernels = {id(kernel.variable): kernel for kernel in prunable_kernels(model)}
    return [LoweredKernel(kernels[id(layer.kernel)], graph.calls, "factorize") for layer in layers]


def _rows(sampler, graph, lowered):
    return np.concatenate([rows for _, (rows,) in sampler.rows(graph, [lowered])])


def _spectra(site, form, responses, of_kernel):
    if form != "svd":
        # Ranks between the steps of other forms do not bound responses.
        return of_kernel(site, form)
    squares = np.maximum(np.linalg.eigvalsh(responses.T @ responses)[::-1], 0.0)
    return [[(squares, responses.shape)]]


def _channel_factors(site, left, right):
    shapes = FORMS["svd"].shapes(site.kernel_shape, (len(right),))
    return FORMS["svd"](
        array.reshape(shape)
        for array, shape in zip((site.kernel @ left, right), shapes, strict=True)
    )


def _scales(site):
    scale, shift, relu = site.following()
    outputs = site.kernel_shape[-1]
    if scale is None:
        return np.ones(outputs), np.zeros(outputs), relu
    # A channel that the normalization all but cuts off must not be divided by nothing.
    least = 1e-3 * np.median(np.abs(scale)) or 1.0
    return np.where(np.abs(scale) < least, least, scale), shift, relu


def _with_bias(layer):
    new = type(layer).from_config({**layer.get_config(), "use_bias": True})
    shape = (
        (None, layer.kernel.shape[0])
        if isinstance(layer, keras.layers.Dense)
        else _image_shape(layer)
    )
    new.build(shape)
    new.kernel.assign(layer.kernel)
    return new


def _image_shape(layer):
    channels = layer.kernel.shape[2]
    if layer.data_format == "channels_last":
        return (None, None, None, channels)
    return (None, channels, None, None)


def _root(squared, reference):
    total = float(np.sum(reference))
    return float(np.sqrt(squared / total)) if total else float(np.sqrt(squared))
