"""PowerOfTwo: levels of INQ (one term) and ShiftCNN (several), draws of Lin et al."""

import itertools

import numpy as np
import pytest

from keras_compress.quantizers import PowerOfTwo
from tests.quantizers.common import normal, values


def nearest(w, levels):
    levels = np.asarray(levels, "float64")
    return levels[np.abs(w.ravel()[:, None] - levels).argmin(axis=1)].reshape(w.shape)


def test_inq_levels_of_the_catalogue():
    np.testing.assert_array_equal(PowerOfTwo(3).levels([0.5]), [[-0.5, -0.25, 0, 0.25, 0.5]])
    # max|w| = 1 gives n1 = 0.
    assert PowerOfTwo(5).levels([1.0]).max() == 1
    assert PowerOfTwo(5).levels([0.1]).shape == (1, 17)
    np.testing.assert_array_equal(
        PowerOfTwo(4).levels([-0.1])[0, 5:], 0.125 / np.array([8, 4, 2, 1])
    )


@pytest.mark.parametrize("exponent", [-20, -3, 0, 5, 30])
def test_inq_largest_level_follows_the_largest_weight(exponent):
    for factor, level in ((0.7499, 0.5), (0.75, 1.0), (1.0, 1.0), (1.4999, 1.0)):
        largest = factor * 2.0**exponent
        assert PowerOfTwo(5).levels([largest, -largest / 7]).max() == level * 2.0**exponent


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_inq_rounding_is_the_rule_of_the_paper(bits):
    w = np.concatenate([normal(2000), 2.0 ** -np.arange(8), -0.75 * 2.0 ** -np.arange(8)])
    w = w.astype("float32")
    positive = [v for v in PowerOfTwo(bits).levels(w)[0] if v >= 0]
    expected = np.zeros_like(w)
    for alpha, beta in itertools.pairwise(positive):
        chosen = ((alpha + beta) / 2 <= np.abs(w)) & (np.abs(w) < 3 * beta / 2)
        expected[chosen] = beta * np.sign(w[chosen])
    np.testing.assert_array_equal(values(PowerOfTwo(bits), w), expected)


def test_shiftcnn_codebooks_of_the_catalogue():
    four = PowerOfTwo(4, terms=2)
    np.testing.assert_array_equal(four.magnitudes(0), 2.0 ** np.arange(-6, 1))
    np.testing.assert_array_equal(four.magnitudes(1), 2.0 ** np.arange(-7, 0))
    two = PowerOfTwo(2, terms=2)
    assert two.magnitudes(0).tolist() == [1] and two.magnitudes(1).tolist() == [0.5]
    assert (four.bits, two.bits) == (8, 4)
    assert four.storage_bits((10, 10)) == 800 + 32


def test_shiftcnn_sums_are_exact_where_the_weight_is_one():
    w = np.array([1.0, 0.75, -0.75, *2.0 ** -np.arange(7), 0.5 + 2**-7, 0.0])
    np.testing.assert_array_equal(values(PowerOfTwo(4, terms=2), w), w)


@pytest.mark.parametrize("bits,terms", [(2, 2), (4, 2), (3, 3)])
def test_shiftcnn_is_the_greedy_sum_of_the_paper(bits, terms):
    w = normal(500)
    rest, total = w / np.float64(np.abs(w).max()), 0
    for n in range(1, terms + 1):
        # C_n = {0, +-2^(1-n), ..., +-2^(2-n-floor(M/2))}
        exponents = np.arange(2 - n - (2**bits - 1) // 2, 2 - n)
        part = nearest(rest, np.concatenate([-(2.0**exponents), [0], 2.0**exponents]))
        total, rest = total + part, rest - part
    outputs = values(PowerOfTwo(bits, terms), w)
    np.testing.assert_allclose(outputs, total * np.abs(w).max(), rtol=1e-6)


def test_shiftcnn_error_falls_with_the_number_of_terms():
    w = normal(2000)
    errors = [np.sum((w - values(PowerOfTwo(4, terms=n), w)) ** 2) for n in (2, 3, 4)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("bits,terms", [(2, 2), (4, 2), (3, 3)])
def test_shiftcnn_levels_are_the_sums_of_its_codebooks(bits, terms):
    quantizer = PowerOfTwo(bits, terms)
    books = [[0, *quantizer.magnitudes(n), *-quantizer.magnitudes(n)] for n in range(terms)]
    sums = sorted({sum(combination) for combination in itertools.product(*books)})
    assert len(sums) <= (2**bits - 1) ** terms
    np.testing.assert_array_equal(quantizer.levels([-1.0]), [sums])


def test_lin_draws_are_the_powers_around_a_value_and_zero_stays_zero():
    w = np.concatenate([normal(2000), np.zeros(50), [1.9, -1e-6, 1e-30]]).astype("float32")
    quantizer = PowerOfTwo(4, rounding="stochastic", seed=1)
    draws = values(quantizer, w, training=True)
    powers = quantizer.levels(w)[0]
    powers = powers[powers > 0]
    with np.errstate(divide="ignore"):
        below = np.exp2(np.floor(np.log2(np.abs(w, dtype="float64"))))
    lower, upper = (np.sign(w) * np.clip(p, powers[0], powers[-1]) for p in (below, 2 * below))
    assert ((draws == lower) | (draws == upper)).all()
    assert (draws[w == 0] == 0).all() and len(np.unique(np.abs(draws[w != 0]))) == 4
    assert draws[-1] == powers[0] and draws[-2] == -powers[0]


def test_lin_mean_of_the_draws_is_the_value_inside_of_the_range():
    for value in (0.3, -0.55, 0.9):
        # The last one sets the range: 1, 1/2, 1/4, 1/8.
        w = np.append(np.full(100_000, value), 1.0)
        draws = values(PowerOfTwo(4, rounding="stochastic", seed=1), w, training=True)[:-1]
        assert len(set(draws.tolist())) == 2
        assert abs(draws.mean() - value) < 0.004


def test_lin_powers_of_two_are_certain_and_inference_does_not_draw():
    w = np.tile([1.0, -0.5, 0.25, -0.125, 0.0], 2000)
    quantizer = PowerOfTwo(4, rounding="stochastic", seed=1)
    np.testing.assert_array_equal(values(quantizer, w, training=True), w)
    w = normal(1000)
    for training in (None, False):
        outputs = values(quantizer, w, training=training)
        np.testing.assert_array_equal(outputs, values(PowerOfTwo(4), w))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"bits": 8}, "`bits` must be an integer from 2 to 7"),
        ({"bits": 6, "terms": 2}, "`bits` must be an integer from 2 to 5"),
        ({"terms": 0}, "`terms` must be an integer from 1 to 4"),
        ({"rounding": "up"}, "`rounding` must be one of 'nearest', 'stochastic'"),
        ({"bits": 4, "terms": 2, "rounding": "stochastic"}, "got terms=2. Use terms=1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PowerOfTwo(**arguments)
