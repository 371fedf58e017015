"""Codebooks: k-means, product and residual quantisation (Gong et al.), zeros of Han et al."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from keras_compress.sharing import Codebook, fit_codebook

RNG = np.random.default_rng(0)


def kernel(*shape):
    return RNG.normal(size=shape).astype("float32")


def loop_decode(book):
    """The kernel of a codebook, entry by entry."""
    decoded = np.zeros(book.shape)
    for place in np.ndindex(book.shape):
        *lead, row, output = place
        segment, offset = divmod(row, book.length)
        for stage, centres in enumerate(book.centres):
            code = book.codes[(stage, *lead, segment, output)]
            decoded[place] += centres[segment if len(centres) > 1 else 0, code, offset]
    return decoded


@pytest.mark.parametrize(
    "options",
    [
        {"method": "binary"},
        {"method": "kmeans", "bits": 3},
        {"method": "kmeans", "segment": 2, "k": 5},
        {"method": "pq", "segment": 3, "k": 4},
        {"method": "pq"},
        {"method": "rq", "k": 3, "stages": 3},
        {"method": "rq", "segment": 4, "k": 6},
    ],
)
@pytest.mark.parametrize("shape", [(12, 10), (3, 2, 12, 5)])
def test_decode_is_the_entry_by_entry_sum_of_centres(options, shape):
    weights = kernel(*shape)
    book = fit_codebook(weights, **options)
    assert book.shape == shape
    np.testing.assert_allclose(book.decode(), loop_decode(book), atol=1e-6)
    assert np.linalg.norm(book.decode() - weights) < np.linalg.norm(weights)
    again = Codebook.from_arrays(book.arrays())
    np.testing.assert_array_equal(again.decode(), book.decode())
    assert again.storage_bits() == book.storage_bits() and again.codes.dtype == np.uint8


def test_gong_binary_is_the_sign_at_the_least_squares_scale():
    weights = kernel(20, 30)
    sign = np.where(weights >= 0, 1.0, -1.0)
    scale = np.linalg.lstsq(sign.reshape(-1, 1), weights.ravel(), rcond=None)[0]
    book = fit_codebook(weights, "binary")
    np.testing.assert_allclose(book.decode(), scale * sign, atol=1e-5)
    assert book.storage_bits() == 600 + 2 * 32


def test_gong_pq_with_segment_1_and_a_shared_codebook_is_scalar_k_means():
    weights = kernel(16, 40)
    first = np.linspace(weights.min(), weights.max(), 8)[:, None]
    scalar = KMeans(8, init=first, n_init=1, tol=0).fit(weights.reshape(-1, 1))
    expected = scalar.cluster_centers_[scalar.labels_].reshape(weights.shape)
    shared = fit_codebook(weights, "kmeans", segment=1, k=8, init="linear")
    assert shared.centres.shape == (1, 1, 8, 1)
    np.testing.assert_allclose(shared.decode(), expected, atol=1e-5)
    # With a book for each place the same algorithm runs once for each input.
    own = fit_codebook(weights, "pq", segment=1, k=8, init="linear")
    each = [fit_codebook(row[None], "kmeans", k=8, init="linear").decode() for row in weights]
    np.testing.assert_array_equal(own.decode(), np.concatenate(each))


def test_gong_as_many_centres_as_distinct_segments_give_zero_error():
    choices = kernel(5, 3, 4)
    weights = np.stack([each[RNG.integers(0, 5, 60)] for each in np.moveaxis(choices, 1, 0)])
    weights = np.swapaxes(weights, 1, 2).reshape(12, 60)
    book = fit_codebook(weights, "pq", segment=4, k=5)
    np.testing.assert_array_equal(book.decode(), weights)
    assert np.abs(fit_codebook(weights, "pq", segment=4, k=4).decode() - weights).max() > 0.01


def test_gong_residual_error_falls_with_every_level():
    weights = kernel(8, 200)
    errors = [
        np.linalg.norm(fit_codebook(weights, "rq", k=8, stages=stages).decode() - weights)
        for stages in (1, 2, 3, 4, 5)
    ]
    assert (np.diff(errors) < -0.01 * errors[0]).all()


@pytest.mark.parametrize("method,stages", [("pq", 1), ("rq", 3)])
def test_gong_every_code_is_the_nearest_centre_of_what_is_left(method, stages):
    weights = kernel(12, 50)
    book = fit_codebook(weights, method, segment=4, k=6, stages=stages)
    for segment in range(3):
        left = weights[4 * segment : 4 * segment + 4].T.copy()
        for stage in range(stages):
            centres = book.centres[stage, segment]
            distances = ((left[:, None] - centres) ** 2).sum(-1)
            codes = book.codes[stage, segment]
            np.testing.assert_allclose(
                distances[np.arange(50), codes], distances.min(axis=1), atol=1e-5
            )
            left -= centres[codes]


@pytest.mark.parametrize("m,n,s,k", [(64, 32, 8, 16), (50, 12, 4, 8)])
def test_gong_ratio_is_that_of_the_storage_bits(m, n, s, k):
    # m vectors (outputs) of n weights, in s segments.
    book = fit_codebook(kernel(n, m), "pq", segment=n // s, k=k)
    ratio = 32 * m * n / (m * s * np.log2(k) + 32 * k * n)
    assert 32 * m * n / book.storage_bits() == pytest.approx(ratio)


def test_han_four_by_four_weights_with_four_values_have_a_ratio_of_3_2():
    book = fit_codebook(kernel(4, 4), "kmeans", k=4)
    assert 32 * 16 / book.storage_bits() == 3.2


def test_han_zeros_stay_zero_and_survivors_are_clustered_alone():
    weights = kernel(20, 30)
    weights[np.abs(weights) < 0.6] = 0
    book = fit_codebook(weights, "kmeans", bits=3)
    assert book.keep_zero and book.centres[0, 0, 0, 0] == 0
    np.testing.assert_array_equal(book.decode() == 0, weights == 0)
    survivors = weights[weights != 0]
    alone = fit_codebook(survivors[None], "kmeans", k=7)
    np.testing.assert_array_equal(book.decode()[weights != 0], alone.decode()[0])
    # The zero itself is not stored.
    assert book.storage_bits() == 600 * 3 + 7 * 32
    assert not fit_codebook(weights, "kmeans", bits=3, keep_zero=False).keep_zero
    nothing = fit_codebook(np.zeros((3, 4)), "kmeans", k=4)
    np.testing.assert_array_equal(nothing.decode(), np.zeros((3, 4)))


def test_wu_bits_are_those_of_codes_and_codebooks():
    c_in, c_out, k, m = 24, 100, 32, 6
    book = fit_codebook(kernel(c_in, c_out), "pq", segment=c_in // m, k=k)
    assert book.storage_bits() == m * c_out * 5 + 32 * k * c_in


def test_codes_take_two_bytes_beyond_256_centres():
    weights = kernel(30, 40)
    book = fit_codebook(weights, "kmeans", k=1200)
    assert book.codes.dtype == np.uint16
    np.testing.assert_array_equal(book.decode(), weights)


def test_books_have_no_more_centres_than_vectors():
    book = fit_codebook(kernel(8, 10), "pq", segment=4, k=64)
    assert book.k == 10


@pytest.mark.parametrize(
    "options,message",
    [
        ({"method": "vq"}, "`method` must be one of 'binary', 'kmeans', 'pq', 'rq'"),
        ({"k": 4, "bits": 2}, "`k` or `bits`, not both"),
        ({"bits": 17}, "`bits` must be an integer from 1 to 16"),
        ({"k": 0}, "`k` must be an integer from 1 to 65536"),
        ({"method": "pq", "segment": 5}, "segment=5. Divisors: 1, 2, 3, 4, 6, 12"),
        ({"method": "pq", "stages": 2}, "only method='rq' has several stages"),
        ({"method": "pq", "segment": 4, "init": "linear"}, "init='linear' is for single weights"),
        ({"init": "random"}, "`init` must be one of"),
        ({"method": "pq", "keep_zero": True}, "`keep_zero` needs method='kmeans'"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit_codebook(kernel(12, 20), **options)


@pytest.mark.parametrize("bad", [np.ones(3), np.full((3, 3), np.nan)])
def test_kernels_without_values_are_refused(bad):
    with pytest.raises(ValueError, match="finite values"):
        fit_codebook(bad)


@pytest.mark.parametrize(
    "codes,centres,message",
    [
        (np.zeros((1, 2, 3)), np.zeros((2, 1, 4, 1)), "must have the shape"),
        (np.zeros((1, 2, 3)), np.zeros((1, 3, 4, 1)), "one for each of the 2 segments"),
        (np.full((1, 2, 3), 4), np.zeros((1, 2, 4, 1)), "from 0 to 3"),
    ],
)
def test_codebooks_that_do_not_fit_together_are_refused(codes, centres, message):
    with pytest.raises(ValueError, match=message):
        Codebook(codes, centres)
