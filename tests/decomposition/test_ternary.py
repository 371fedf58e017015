"""Wang and Cheng's fixed-point factorization: brute force, exact recovery, explicit sums."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.decomposition import decompose, factorize
from keras_compress.decomposition.ternary import (
    balanced_levels,
    recover,
    semidiscrete,
    ternary_maximizer,
)

RNG = np.random.default_rng(0)
LEVELS = {-1.0, 0.0, 1.0}


def test_wang_residual_falls_strictly_with_every_term():
    matrix = RNG.normal(size=(14, 10))
    x, d, y = semidiscrete(matrix, 40)
    norms = [np.linalg.norm(matrix - (x[:, :k] * d[:k]) @ y[:k]) for k in range(41)]
    assert (np.diff(norms) < 0).all() and norms[-1] < 0.05 * norms[0]


@pytest.mark.parametrize("size", range(1, 9))
def test_wang_choice_of_j_equals_brute_force_over_all_ternary_vectors(size):
    for _ in range(5):
        scores = RNG.normal(size=size)
        best = max(
            (np.dot(x, scores) ** 2 / np.count_nonzero(x), x)
            for x in itertools.product((-1, 0, 1), repeat=size)
            if any(x)
        )[0]
        x = ternary_maximizer(scores)
        assert np.dot(x, scores) ** 2 / np.count_nonzero(x) == pytest.approx(best)


def test_wang_factors_contain_only_ternary_values_and_scales_that_are_not_negative():
    x, d, y = decompose(RNG.normal(size=(3, 3, 4, 6)), "ternary", 12).arrays
    assert set(x.ravel()) == LEVELS and set(y.ravel()) == LEVELS and (d > 0).all()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_wang_disjoint_terms_are_recovered_exactly(order):
    x, y = np.zeros((12, 3)), np.zeros((3, 11))
    for term, (rows, columns) in enumerate(((slice(0, 2), 5), (slice(2, 9), 2), (slice(9, 12), 4))):
        x[rows, term] = RNG.choice([-1, 1], size=x[rows, term].shape)
        start = (0, 5, 7)[term]
        y[term, start : start + columns] = RNG.choice([-1, 1], size=columns)
    d = np.array([0.3, 1.1, 0.7])[list(order)]
    matrix = (x * d) @ y
    found = semidiscrete(matrix, 3)
    np.testing.assert_allclose((found[0] * found[1]) @ found[2], matrix, atol=1e-14)
    np.testing.assert_allclose(sorted(found[1]), sorted(d), rtol=1e-12)
    # Terms that are not needed are left out.
    more = semidiscrete(matrix, 5)
    assert not more[1][3:].any() and not more[0][:, 3:].any()


def test_convolution_is_the_sum_over_terms_of_its_filters():
    kernel = RNG.normal(size=(2, 3, 4, 5))
    factors = decompose(kernel, "ternary", 6)
    x, d, y = factors.arrays
    assert x.shape == (2, 3, 4, 6) and d.shape == (6,) and y.shape == (1, 1, 6, 5)
    expected = sum(d[r] * x[..., r, None] * y[0, 0, r] for r in range(6))
    np.testing.assert_allclose(factors.reconstruct(), expected, atol=1e-12)
    assert factors.weights(kernel.shape, (6,)) == -(-2 * (24 * 6 + 6 * 5) // 32) + 6


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_kernels_of_any_size_of_weights_fit_alike(scale):
    kernel = RNG.normal(size=(10, 8)).astype("float32")
    plain = decompose(kernel, "ternary", 8).reconstruct()
    scaled = decompose(kernel * np.float32(scale), "ternary", 8).reconstruct()
    np.testing.assert_allclose(scaled / scale, plain, atol=1e-5)


def test_a_kernel_of_zeros_has_terms_of_zeros():
    assert not decompose(np.zeros((4, 3)), "ternary", 2).reconstruct().any()


def test_wang_recovered_factors_round_to_the_ternary_ones_and_are_nearer_to_the_kernel():
    kernel = RNG.normal(size=(3, 3, 4, 20))
    factors = decompose(kernel, "ternary", 16)
    x, d, y = factors.arrays
    latent_x, latent_y = recover(kernel, factors)
    np.testing.assert_array_equal(np.round(latent_x), x)
    np.testing.assert_array_equal(np.round(latent_y), y)
    found = np.einsum("ijsr,r,rt->ijst", latent_x, d, latent_y[0, 0])
    assert np.linalg.norm(kernel - found) < 0.8 * np.linalg.norm(kernel - factors.reconstruct())


def test_wang_balanced_levels_give_both_factors_gradients_of_one_size():
    kernel = 0.05 * RNG.normal(size=(60, 20))
    factors = decompose(kernel, "ternary", 12)
    x, d, y = factors.arrays
    a, b = balanced_levels(factors)
    np.testing.assert_allclose(a * b, d)
    gradients = RNG.normal(size=(400, *kernel.shape))
    # Of `sum(gradient * (a x)(b y))` in the entries of `a x` and `b y`.
    first = np.mean((gradients @ (b[:, None] * y).T) ** 2, axis=(0, 1))
    last = np.mean(((a * x).T @ gradients) ** 2, axis=(0, 2))
    np.testing.assert_allclose(first, last, rtol=0.15)
    unbalanced = np.mean(((x.T @ gradients) * d[:, None]) ** 2, axis=(0, 2))
    assert (unbalanced < 0.1 * first).all()


def test_factorize_puts_ternary_layers_where_they_take_less_room():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, name="conv", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(6, name="fc"),
            keras.layers.Dense(1, name="tiny"),
        ]
    )
    result = factorize(model, "ternary", 6, verbose=0)
    forms = {row.layer: row.form for row in result.layers}
    assert forms == {"conv": "ternary", "fc": "ternary", "tiny": None}
    for name, cls in (
        ("conv", kc.layers.TernaryFactorizedConv2D),
        ("fc", kc.layers.TernaryFactorizedDense),
    ):
        layer = result.model.get_layer(name)
        kernel = ops.convert_to_numpy(model.get_layer(name).kernel)
        assert isinstance(layer, cls)
        expected = decompose(kernel, "ternary", 6)
        np.testing.assert_allclose(
            layer.reconstruct_kernel(), expected.reconstruct(), rtol=1e-4, atol=1e-7
        )
        (row,) = [row for row in result.layers if row.layer == name]
        assert row.error == pytest.approx(expected.error(kernel), rel=1e-4)
        assert row.params_after == expected.weights(kernel.shape, (6,))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({}, "takes `rank` as an integer.* = 6 terms"),
        ({"rank": 0.5}, "takes `rank` as an integer"),
        ({"rank": kc.decomposition.Budget(params=0.5)}, "Give its ranks as integers"),
        ({"rank": 4, "objective": "covariance"}, "term by term: objective='weights'"),
        ({"rank": 8 * 6 + 1, "layers": "fc"}, "largest useful rank is 48"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, name="fc")])
    with pytest.raises(ValueError, match=message):
        factorize(model, "ternary", **arguments, verbose=0)
