"""SoftWeightSharing: Ullrich's mixture prior, against the formulas in float64."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import logsumexp
from scipy.stats import beta, gamma

import keras_compress as kc
from keras_compress.regularizers import SoftWeightSharing
from tests.gradients import gradient

RNG = np.random.default_rng(0)


def prior_of(means, sigmas, shares, tau=0.02, **kwargs):
    """A prior with given components; the first one is at zero."""
    shares = np.asarray(shares, "float64")
    prior = SoftWeightSharing(len(sigmas), pi_zero=shares[0], tau=tau, **kwargs)
    prior.means.assign(means[1:])
    prior.log_sigmas.assign(np.log(sigmas))
    prior.log_shares.assign(np.log(shares[1:]))
    return prior


def seventeen(**kwargs):
    means = np.concatenate([[0.0], RNG.normal(size=16)])
    shares = np.concatenate([[0.9], 0.1 * RNG.dirichlet(np.ones(16))])
    sigmas = RNG.uniform(0.1, 0.6, 17)
    return prior_of(means, sigmas, shares, **kwargs), means, sigmas, shares


def log_joint(w, means, sigmas, shares):
    z = (w[:, None] - means) / sigmas
    return np.log(shares) - np.log(sigmas) - 0.5 * np.log(2 * np.pi) - z**2 / 2


def log_likelihood(w, means, sigmas, shares):
    return logsumexp(log_joint(w, means, sigmas, shares), axis=1).sum()


def test_ullrich_one_component_of_fixed_sigma_is_l2_up_to_a_constant():
    prior = SoftWeightSharing(components=1, tau=0.3)
    prior.log_sigmas.assign([np.log(0.7)])
    l2 = keras.regularizers.L2(0.3 / (2 * 0.7**2))
    kernels = RNG.normal(size=(5, 8, 3)).astype("float32")
    differences = [float(prior(w)) - float(l2(ops.convert_to_tensor(w))) for w in kernels]
    np.testing.assert_allclose(differences, 24 * 0.3 * np.log(0.7 * np.sqrt(2 * np.pi)), rtol=1e-4)
    np.testing.assert_allclose(gradient(prior, kernels[0]), gradient(l2, kernels[0]), rtol=1e-5)


def test_ullrich_penalty_is_minus_tau_log_likelihood():
    prior, *mixture = seventeen(examples=10)
    w = RNG.normal(size=(20, 30)).astype("float32")
    expected = -0.02 / 10 * log_likelihood(w.reshape(-1).astype("float64"), *mixture)
    np.testing.assert_allclose(float(prior(w)), expected, rtol=1e-5)


def test_ullrich_gradient_in_the_weights_is_the_pull_of_the_responsible_components():
    """`tau sum_j r_ij (w_i - mu_j) / sigma_j^2`."""
    prior, means, sigmas, shares = seventeen()
    w = RNG.normal(size=500)
    joint = log_joint(w, means, sigmas, shares)
    responsibilities = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    expected = 0.02 * (responsibilities * (w[:, None] - means) / sigmas**2).sum(axis=1)
    np.testing.assert_allclose(gradient(prior, w.astype("float32")), expected, atol=1e-5)


def test_ullrich_density_is_finite_a_hundred_sigmas_away():
    means, sigmas, shares = np.array([0.0, 0.5]), np.array([0.01, 0.01]), np.array([0.99, 0.01])
    prior = prior_of(means, sigmas, shares, tau=1.0)
    w = np.array([-1.0, 1.5, 0.25])
    expected = -log_likelihood(w, means, sigmas, shares)
    np.testing.assert_allclose(float(prior(w.astype("float32"))), expected, rtol=1e-5)
    pulls = gradient(prior, w.astype("float32"))
    np.testing.assert_allclose(pulls[:2], [-1.0 / 0.01**2, 1.0 / 0.01**2], rtol=1e-4)


@pytest.mark.parametrize("zero_share", [None, (30.0, 2.0)])
def test_ullrich_gradients_in_the_mixture_are_those_of_finite_differences(zero_share):
    prior, *_ = seventeen(zero_share=zero_share)
    w = RNG.normal(size=(40, 5))
    variables = prior.trainable_variables
    assert len(variables) == (3 if zero_share is None else 4)
    arrays = [ops.convert_to_numpy(v).astype("float64") for v in variables]

    def numpy_loss(arrays):
        values = dict(zip((v.name for v in variables), arrays, strict=True))
        pi_zero = 1 / (1 + np.exp(-values["zero_logit"])) if zero_share else 0.9
        others = np.exp(values["log_shares"] - logsumexp(values["log_shares"]))
        shares = np.concatenate([[pi_zero], (1 - pi_zero) * others])
        means = np.concatenate([[0.0], values["means"]])
        return -0.02 * log_likelihood(w.reshape(-1), means, np.exp(values["log_sigmas"]), shares)

    for index, variable in enumerate(variables):

        def loss(value, variable=variable):
            with keras.StatelessScope(state_mapping=[(variable, value)]):
                return prior(ops.convert_to_tensor(w, "float32"))

        flat = arrays[index].reshape(-1)
        expected = np.zeros(flat.size)
        for i in range(flat.size):
            sides = []
            for step in (1e-5, -1e-5):
                moved = flat.copy()
                moved[i] += step
                shifted = [*arrays]
                shifted[index] = moved.reshape(arrays[index].shape)
                sides.append(numpy_loss(shifted))
            expected[i] = (sides[0] - sides[1]) / 2e-5
        found = gradient(loss, arrays[index].astype("float32")).reshape(-1)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4, err_msg=variable.name)


def test_large_kernels_are_chunked_and_nothing_else_changes():
    """Whole chunks, and what is left over."""
    prior, *mixture = seventeen(tau=1e-3)
    w = RNG.normal(size=2 * 16_384 + 777).astype("float32")
    np.testing.assert_allclose(
        float(prior(w)), -1e-3 * log_likelihood(w.astype("float64"), *mixture), rtol=1e-5
    )
    ends = [slice(0, 200), slice(16_300, 16_500), slice(32_700, 33_545)]
    whole = gradient(prior, w)
    for part in ends:
        np.testing.assert_allclose(whole[part], gradient(prior, w[part]), atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="asks XLA for the memory it takes")
def test_components_of_a_large_kernel_are_not_in_memory_at_once():
    import jax

    prior, *_ = seventeen()
    size = 64 * 16_384
    step = jax.jit(jax.value_and_grad(prior)).lower(np.zeros(size, "float32")).compile()
    # Left to automatic differentiation it is more than 17 copies of the kernel.
    assert step.memory_analysis().temp_size_in_bytes < 6 * 4 * size


def test_ullrich_hyper_priors_are_gamma_on_precisions_and_beta_on_the_zero_share():
    """Differences of the model's loss are those of scipy's log densities."""
    settings = {"zero_precision": (50.0, 0.2), "precision": (20.0, 0.1), "zero_share": (30.0, 2.0)}
    prior = SoftWeightSharing(components=3, tau=0.5, examples=4, **settings)

    def both(sigmas, logit):
        prior.log_sigmas.assign(np.log(sigmas))
        prior.zero_logit.assign(logit)
        precisions = 1 / np.square(sigmas)
        scipy = gamma.logpdf(precisions[0], 50, scale=1 / 0.2)
        scipy += gamma.logpdf(precisions[1:], 20, scale=1 / 0.1).sum()
        scipy += beta.logpdf(1 / (1 + np.exp(-logit)), 30, 2)
        return float(sum(prior.losses)), -0.5 / 4 * scipy

    pairs = [both([0.05, 0.1, 0.1], 2.0), both([0.1, 0.07, 0.2], 3.0), both([0.06, 0.1, 0.09], 1.0)]
    ours, theirs = np.diff(np.array(pairs), axis=0).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_hyper_priors_can_be_left_out():
    prior = SoftWeightSharing(components=3, zero_precision=None, precision=None)
    assert float(sum(prior.losses)) == 0


def test_ullrich_start_spreads_components_over_the_range_of_the_weights():
    prior = SoftWeightSharing(components=5, pi_zero=0.95)
    prior.start([np.array([-0.5, 0.1]), np.array([[0.7]])])
    mixture = prior.mixture
    np.testing.assert_allclose(mixture.means, [0, -0.5, -0.1, 0.3, 0.7], atol=1e-6)
    np.testing.assert_allclose(mixture.sigmas, 1.2 / 4, rtol=1e-6)
    np.testing.assert_allclose(mixture.shares, [0.95, *[0.0125] * 4], rtol=1e-5)


def test_config_round_trip():
    prior = SoftWeightSharing(7, 0.95, 1e-3, 60_000, zero_share=(3, 2), precision=None)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(prior))
    assert isinstance(again, SoftWeightSharing) and again.get_config() == prior.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": 0}, "`components` must be a positive integer"),
        ({"pi_zero": 1.0}, r"`pi_zero` must be a number in \(0, 1\)"),
        ({"tau": -1}, r"`tau` must be a number in \[0"),
        ({"examples": 0.5}, "`examples` must be a positive integer"),
        ({"precision": 3.0}, "`precision` must be two positive numbers or None"),
        ({"zero_share": (1, 0)}, r"`zero_share` must be a number in \(0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftWeightSharing(**arguments)


def test_a_mixture_needs_a_range():
    with pytest.raises(ValueError, match="Train the model first"):
        kc.regularizers.SoftWeightSharing().start([np.zeros((3, 3))])
