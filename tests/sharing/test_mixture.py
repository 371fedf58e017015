"""Mixture and quantize_mixture: what follows Ullrich's soft weight-sharing."""

import keras
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import keras_compress as kc
from keras_compress.sharing import Mixture

RNG = np.random.default_rng(0)


def array(variable):
    return keras.ops.convert_to_numpy(variable)


def density(mixture, w):
    columns = zip(mixture.shares, mixture.means, mixture.sigmas, strict=True)
    return sum(share * norm.pdf(w, mean, sigma) for share, mean, sigma in columns)


def test_ullrich_merging_two_identical_components_leaves_the_density():
    mixture = Mixture(
        np.array([0.5, 0.1, 0.15, 0.25]),
        np.array([0.0, 0.4, 0.4, -0.3]),
        np.array([0.1, 0.05, 0.05, 0.2]),
    )
    merged = mixture.merged(0.0)
    assert len(merged) == 3
    w = np.linspace(-2, 2, 1001)
    np.testing.assert_allclose(density(merged, w), density(mixture, w), rtol=1e-12)


def test_ullrich_pairs_merge_by_their_symmetric_kl_divergence():
    """The divergence by numerical integration; the pair merges just above it, not below."""
    means, sigmas = np.array([0.0, 3.0, 3.2]), np.array([0.5, 0.3, 0.4])
    mixture = Mixture(np.array([0.6, 0.1, 0.3]), means, sigmas)

    def difference(w):
        p, q = norm(means[1], sigmas[1]), norm(means[2], sigmas[2])
        return (p.pdf(w) - q.pdf(w)) * (p.logpdf(w) - q.logpdf(w))

    divergence = quad(difference, -2, 8)[0]
    assert len(mixture.merged(divergence * 0.999)) == 3
    merged = mixture.merged(divergence * 1.001)
    assert len(merged) == 2
    # Moments of the pair, by integration of their density.
    pair = Mixture(np.array([0.25, 0.75]), means[1:], sigmas[1:])
    mean = quad(lambda w: w * density(pair, w), -2, 8)[0]
    variance = quad(lambda w: (w - mean) ** 2 * density(pair, w), -2, 8)[0]
    found = [merged.shares[1], merged.means[1], merged.sigmas[1] ** 2]
    np.testing.assert_allclose(found, [0.4, mean, variance], rtol=1e-6)


def test_ullrich_zero_stays_zero_in_a_merge():
    mixture = Mixture(np.array([0.9, 0.1]), np.array([0.0, 0.02]), np.array([0.1, 0.1]))
    merged = mixture.merged(1.0)
    assert merged.means.tolist() == [0.0] and merged.shares.tolist() == [1.0]


def test_ullrich_weights_go_to_the_most_responsible_component():
    mixture = Mixture(
        np.array([0.8, 0.15, 0.05]), np.array([0.0, 0.5, -0.4]), np.array([0.1, 0.2, 0.05])
    )
    w = RNG.normal(size=(70, 1000)).astype("float32")
    columns = zip(mixture.shares, mixture.means, mixture.sigmas, strict=True)
    logs = np.stack([np.log(s) + norm.logpdf(w.astype("float64"), m, d) for s, m, d in columns])
    expected = mixture.means.astype("float32")[logs.argmax(axis=0)]
    np.testing.assert_array_equal(mixture.quantize(w), expected)


def trained_model():
    """A model with a nested one, a frozen layer, an embedding and a normalisation."""
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(12, name="inner")])
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(9, 6)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.BatchNormalization()(inner(x))
    x = keras.layers.Dense(5, name="frozen", trainable=False)(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="out")(x))


def started_prior(model, components=5, **kwargs):
    prior = kc.regularizers.SoftWeightSharing(components, **kwargs)
    prior.start([array(model.get_layer("out").kernel)])
    prior.log_sigmas.assign(np.full(components, np.log(0.05)))
    return prior


def test_ullrich_after_quantisation_few_values_and_exact_zeros():
    model = trained_model()
    prior = started_prior(model, pi_zero=0.9)
    before = [array(w) for w in model.weights]
    small = kc.sharing.quantize_mixture(model, prior)
    kernels = [small.layers[3].get_layer("inner").kernel, small.get_layer("out").kernel]
    values = np.concatenate([array(kernel).reshape(-1) for kernel in kernels])
    assert len(np.unique(values)) <= 5 and (values == 0).any()
    sources = [model.layers[3].get_layer("inner").kernel, model.get_layer("out").kernel]
    sources = np.concatenate([array(kernel).reshape(-1) for kernel in sources])
    np.testing.assert_array_equal(values, prior.mixture.merged(0.1).quantize(sources))
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, array(new))
    for old, new in zip(model.weights, small.weights, strict=True):
        if old.name != "kernel" or "frozen" in old.path:
            np.testing.assert_array_equal(array(old), array(new))


def test_layers_choose_what_is_quantised():
    model = trained_model()
    prior = started_prior(model)
    small = kc.sharing.quantize_mixture(model, prior, layers="embedding*")
    embedding = next(layer for layer in small.layers if "embedding" in layer.name)
    assert len(np.unique(array(embedding.embeddings))) <= 5
    np.testing.assert_array_equal(
        array(small.get_layer("out").kernel), array(model.get_layer("out").kernel)
    )


def test_bad_arguments_are_refused():
    model = trained_model()
    prior = started_prior(model)
    with pytest.raises(ValueError, match="was trained by"):
        kc.sharing.quantize_mixture(model, kc.regularizers.SoftWeightSharing())
    with pytest.raises(ValueError, match="`merge_below` must be a number"):
        kc.sharing.quantize_mixture(model, prior, merge_below=-1)
    with pytest.raises(ValueError, match="No layer matches 'outt'. Did you mean 'out'"):
        kc.sharing.quantize_mixture(model, prior, layers=["outt"])
    with pytest.raises(ValueError, match="'frozen' matches no trainable layer with a kernel"):
        kc.sharing.quantize_mixture(model, prior, layers="frozen")
