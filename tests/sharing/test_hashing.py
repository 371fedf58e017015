"""The hash of hashed layers, and the arrays that it makes of a vector."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from keras_compress.sharing.hashing import (
    buckets_and_signs,
    expand_values,
    expand_values_tensor,
    fit_values,
    signed_buckets,
    signed_buckets_tensor,
)
from tests.gradients import gradient

CASES = [((128, 96), 500, 0), ((64, 200), 4096, 1), ((3, 5, 16, 24), 77, 2**32 - 1)]


def mix(h):
    """lowbias32 on one Python integer."""
    h = (h ^ h >> 16) * 0x7FEB352D % 2**32
    h = (h ^ h >> 15) * 0x846CA68B % 2**32
    return h ^ h >> 16


def hash_of_one_index(index, shape, buckets, seed):
    golden = 0x9E3779B9
    state = mix(seed)
    for size in shape:
        state = mix((state + size * golden) % 2**32)
    total = 0
    for axis, i in enumerate(index):
        key = mix((state + (axis + 1) * golden) % 2**32)
        total += mix((key + i) % 2**32)
    m = mix(total % 2**32)
    return (m - 2**32 if m >= 2**31 else m) % (2 * buckets)


@pytest.mark.parametrize("shape,buckets,seed", [((5, 7), 9, 3), ((2, 3, 4), 100, 0)])
def test_chen_hash_is_the_documented_formula_index_by_index(shape, buckets, seed):
    hashed = signed_buckets(shape, buckets, seed)
    for index in np.ndindex(*shape):
        assert hashed[index] == hash_of_one_index(index, shape, buckets, seed)


@pytest.mark.parametrize("shape,buckets,seed", CASES)
def test_chen_numpy_and_ops_agree_bit_for_bit(shape, buckets, seed):
    tensor = signed_buckets_tensor(shape, buckets, seed)
    assert keras.backend.standardize_dtype(tensor.dtype) == "int32"
    np.testing.assert_array_equal(
        ops.convert_to_numpy(tensor), signed_buckets(shape, buckets, seed)
    )


@pytest.mark.parametrize("shape,buckets,seed", CASES)
def test_chen_bucket_counts_are_uniform(shape, buckets, seed):
    index, _ = buckets_and_signs(shape, buckets, seed)
    counts = np.bincount(index.ravel(), minlength=buckets)
    assert len(counts) == buckets
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("shape,buckets,seed", CASES)
def test_chen_signs_are_balanced_and_independent_of_the_bucket(shape, buckets, seed):
    index, sign = buckets_and_signs(shape, buckets, seed)
    assert set(np.unique(sign)) == {-1.0, 1.0}
    assert abs(sign.mean()) < 4 / np.sqrt(sign.size)
    # Sixteen groups of buckets, so that every cell is well filled.
    groups = index.ravel() * 16 // buckets
    table = np.array([np.bincount(groups[sign.ravel() == s], minlength=16) for s in (-1, 1)])
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (0, 16), (16, 0), (1, -1)])
def test_chen_neighbours_are_independent(step):
    hashed = signed_buckets((256, 256), 8, 0)
    pairs = hashed * 16 + np.roll(hashed, step, (0, 1))
    assert stats.chisquare(np.bincount(pairs.ravel(), minlength=256)).pvalue > 1e-3


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 2**31}, {"shape": (128, 97)}])
def test_chen_other_seeds_and_other_shapes_hash_differently(other):
    buckets = 50
    first = signed_buckets((128, 96), buckets, 0)
    second = signed_buckets(other.get("shape", (128, 96)), buckets, other.get("seed", 0))
    equal = np.mean(first == second[:128, :96])
    assert equal == pytest.approx(1 / (2 * buckets), abs=4 * np.sqrt(0.01 / first.size))


@pytest.mark.parametrize("shape,buckets,seed", CASES)
def test_chen_virtual_array_is_value_times_sign(shape, buckets, seed):
    values = np.random.default_rng(0).normal(size=buckets).astype("float32")
    index, sign = buckets_and_signs(shape, buckets, seed)
    np.testing.assert_array_equal(expand_values(values, shape, seed), values[index] * sign)
    for fused in (False, True):
        tensor = expand_values_tensor(ops.convert_to_tensor(values), shape, seed, fused)
        np.testing.assert_array_equal(ops.convert_to_numpy(tensor), values[index] * sign)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape,buckets,seed", CASES)
def test_chen_gradient_is_the_bucket_sum(shape, buckets, seed, fused):
    rng = np.random.default_rng(1)
    values = rng.normal(size=buckets).astype("float32")
    upstream = rng.normal(size=shape).astype("float32")
    actual = gradient(
        lambda w: ops.sum(expand_values_tensor(w, shape, seed, fused) * upstream), values
    )
    index, sign = buckets_and_signs(shape, buckets, seed)
    expected = np.zeros(buckets)
    np.add.at(expected, index, sign * upstream)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("fused", [False, True])
def test_long_bucket_sums_survive_half_precision(fused):
    shape = (64, 64)
    _, sign = buckets_and_signs(shape, 1, 0)

    def loss(values):
        array = expand_values_tensor(ops.cast(values, "bfloat16"), shape, 0, fused)
        return ops.sum(ops.cast(array, "float32") * sign)

    # A bfloat16 sum of ones stops at 256.
    np.testing.assert_allclose(gradient(loss, np.ones(1, "float32")), [4096], rtol=2**-7)


def test_fit_is_the_least_squares_solution():
    shape, buckets, seed = (12, 10), 30, 4
    array = np.random.default_rng(2).normal(size=shape).astype("float32")
    index, sign = buckets_and_signs(shape, buckets, seed)
    design = np.zeros((array.size, buckets))
    design[np.arange(array.size), index.ravel()] = sign.ravel()
    # The shortest solution, as numpy gives it, is 0 at buckets that no entry uses.
    expected = np.linalg.lstsq(design, array.ravel(), rcond=None)[0]
    np.testing.assert_allclose(fit_values(array, buckets, seed), expected, atol=1e-6)


def test_fit_recovers_a_hashed_array_and_leaves_empty_buckets_at_zero():
    shape, buckets, seed = (6, 5), 40, 9
    values = np.random.default_rng(3).normal(size=buckets).astype("float32")
    used = np.isin(np.arange(buckets), buckets_and_signs(shape, buckets, seed)[0])
    assert not used.all()
    fitted = fit_values(expand_values(values, shape, seed), buckets, seed)
    np.testing.assert_allclose(fitted, np.where(used, values, 0), atol=1e-6)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, None, "0"])
def test_seeds_that_32_bits_do_not_hold_are_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer in \[0, 2\*\*32\)"):
        signed_buckets((3, 4), 5, seed)


@pytest.mark.parametrize("function", [signed_buckets, signed_buckets_tensor])
@pytest.mark.parametrize("buckets", [0, 2.5, 2**30])
def test_bucket_numbers_that_an_index_does_not_hold_are_refused(function, buckets):
    with pytest.raises(ValueError, match="`buckets` must be"):
        function((3, 4), buckets, 0)


def test_the_largest_bucket_number_is_still_hashed_as_documented():
    buckets = 2**30 - 1
    hashed = signed_buckets((4, 5), buckets, 0)
    assert hashed[3, 2] == hash_of_one_index((3, 2), (4, 5), buckets, 0)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(signed_buckets_tensor((4, 5), buckets, 0)), hashed
    )
