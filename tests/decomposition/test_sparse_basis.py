"""Liu's channel and filter bases, and what is left of them, against explicit sums and SVDs."""

import keras
import numpy as np
import pytest
from keras import ops
from tensorly.decomposition import parafac

import keras_compress as kc
from keras_compress.decomposition import SparseBasisFactors, decompose, factorize

RNG = np.random.default_rng(0)


def test_liu_kernel_is_the_sum_over_channels_and_filters_of_both_bases():
    kernel = RNG.normal(size=(3, 2, 4, 7))
    factors = decompose(kernel, "sparse_basis", 3)
    p, f, m = factors.arrays
    assert p.shape == (1, 1, 4, 4) and f.shape == (3, 2, 4, 3) and m.shape == (1, 1, 12, 7)
    found = factors.reconstruct()
    for i, j, s, t in np.ndindex(kernel.shape):
        expected = sum(
            p[0, 0, s, k] * f[i, j, k, q] * m[0, 0, 3 * k + q, t]
            for k in range(4)
            for q in range(3)
        )
        assert found[i, j, s, t] == pytest.approx(expected, abs=1e-12)


def test_liu_bases_are_orthonormal_and_the_error_is_that_of_the_principal_components():
    kernel = RNG.normal(size=(3, 3, 5, 12))
    factors = decompose(kernel, "sparse_basis", 2)
    p, f, _ = factors.arrays
    np.testing.assert_allclose(p[0, 0].T @ p[0, 0], np.eye(5), atol=1e-12)
    columns = f.transpose(2, 0, 1, 3).reshape(5, 9, 2)
    np.testing.assert_allclose(columns.transpose(0, 2, 1) @ columns, [np.eye(2)] * 5, atol=1e-12)
    # Principal components of the channels, then of the filters of each.
    u, _, _ = np.linalg.svd(kernel.transpose(2, 0, 1, 3).reshape(5, -1), full_matrices=False)
    rest = np.einsum("sk,ijst->kijt", u, kernel).reshape(5, 9, 12)
    dropped = sum(np.sum(np.linalg.svd(r, compute_uv=False)[2:] ** 2) for r in rest)
    assert factors.error(kernel) ** 2 * np.sum(kernel**2) == pytest.approx(dropped)


@pytest.mark.parametrize("shape", [(3, 3, 4, 16), (3, 3, 4, 5), (1, 1, 3, 4), (2, 3, 1, 9)])
def test_liu_is_exact_with_as_many_filters_as_positions(shape):
    kernel = RNG.normal(size=shape).astype("float32")
    largest = min(shape[0] * shape[1], shape[3])
    assert decompose(kernel, "sparse_basis", largest).error(kernel) < 1e-5
    with pytest.raises(ValueError, match=f"largest useful rank is {largest}"):
        decompose(kernel, "sparse_basis", largest + 1)


@pytest.mark.parametrize("strides,padding", [(1, "valid"), (2, "same")])
def test_liu_chain_equals_the_convolution_before_thresholding(strides, padding):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((9, 8, 4)),
            keras.layers.Conv2D(12, 3, strides, padding, activation="relu", name="conv"),
        ]
    )
    x = RNG.normal(size=(2, 9, 8, 4)).astype("float32")
    result = factorize(model, "sparse_basis", 9, layers="conv", verbose=0)
    layer = result.model.get_layer("conv")
    assert isinstance(layer, kc.layers.SparseBasisConv2D) and layer.rank == 9
    np.testing.assert_allclose(
        ops.convert_to_numpy(result.model(x)), ops.convert_to_numpy(model(x)), atol=1e-4
    )


def test_normalized_factors_have_unit_columns_and_the_same_kernel():
    given = SparseBasisFactors(
        (
            RNG.normal(size=(1, 1, 3, 3)),
            RNG.normal(size=(3, 3, 3, 2)),
            RNG.normal(size=(1, 1, 6, 5)),
        )
    )
    # A channel that is read by nothing.
    given.arrays[0][..., 1] = 0
    p, f, _ = given.normalized().arrays
    np.testing.assert_allclose(np.linalg.norm(p[0, 0], axis=0), [1, 0, 1])
    np.testing.assert_allclose(np.linalg.norm(f, axis=(0, 1)), np.ones((3, 2)))
    np.testing.assert_allclose(given.normalized().reconstruct(), given.reconstruct(), atol=1e-12)


def test_liu_zero_rows_take_their_filters_along_and_the_kernel_stays():
    factors = decompose(RNG.normal(size=(3, 3, 4, 9)), "sparse_basis", 3)
    mixture = factors.arrays[2]
    mixture[:, :, [0, 4, 5, 9, 10, 11]] = 0
    assert np.flatnonzero(~factors.used()).tolist() == [0, 4, 5, 9, 10, 11]
    smaller = factors.without(~factors.used())
    assert smaller.rank == (6,) and smaller.params() == 6 * (4 + 9 + 9)
    np.testing.assert_allclose(smaller.reconstruct(), factors.reconstruct(), atol=1e-12)


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_depthwise_form_fits_no_worse_than_tensorly(rank):
    kernel = RNG.normal(size=(3, 3, 4, 6))
    weights, (a, b, c) = parafac(
        kernel.reshape(9, 4, 6), rank, n_iter_max=300, init="svd", tol=1e-9
    )
    found = np.einsum("r,ir,sr,tr->ist", weights, a, b, c).reshape(kernel.shape)
    reference = np.linalg.norm(kernel - found) / np.linalg.norm(kernel)
    factors = decompose(kernel, "depthwise", rank)
    assert factors.error(kernel) <= 1.02 * reference
    p, f, m = factors.arrays
    explicit = np.einsum("sr,ijr,rt->ijst", p[0, 0], f[..., 0], m[0, 0])
    np.testing.assert_allclose(factors.reconstruct(), explicit, atol=1e-12)
