"""RankConstrainedDense: what the protocol tests do not cover."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.decomposition import Energy
from keras_compress.layers import FactorizedDense, RankConstrainedDense

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)
RNG = np.random.default_rng(0)


def built(units=9, grid=(6, 5), rank=2, **arguments):
    layer = RankConstrainedDense(units, input_grid=grid, rank=rank, **arguments)
    layer.build((None, grid[0] * grid[1]))
    return layer


def filters(layer):
    """Each unit's `sum_r b_r a_r^T`, one by one."""
    time = ops.convert_to_numpy(layer.time_weights)
    frequency = ops.convert_to_numpy(layer.frequency_weights)
    return [
        sum(np.outer(time[:, r, m], frequency[:, r, m]) for r in range(layer.rank))
        for m in range(layer.units)
    ]


def trained_dense(units=7, grid=(6, 5)):
    dense = keras.layers.Dense(units)
    dense.build((None, grid[0] * grid[1]))
    dense.kernel.assign(RNG.normal(size=dense.kernel.shape))
    return dense


@pytest.mark.parametrize("shape", [(4, 30), (2, 3, 30)])
def test_nakkiran_equals_dense_with_the_stacked_filters(shape):
    layer = built(activation="tanh", bias_initializer="ones")
    kernel = np.stack([each.ravel() for each in filters(layer)], axis=1)
    x = RNG.normal(size=shape).astype("float32")
    np.testing.assert_allclose(layer(x), np.tanh(x @ kernel + 1), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_nakkiran_each_filter_has_the_rank_and_the_kernel_need_not(rank):
    keras.utils.set_random_seed(0)
    kernel = ops.convert_to_numpy(built(units=20, rank=rank).expand().kernel)
    for column in kernel.T:
        values = np.linalg.svd(column.reshape(6, 5), compute_uv=False)
        assert values[rank] < 1e-5 * values[0] < values[rank - 1]
    assert np.linalg.matrix_rank(kernel) == 20


def test_nakkiran_params_are_units_times_rank_times_the_sum_of_the_sides():
    layer = built(units=128, grid=(32, 40), rank=2, use_bias=False)
    assert layer.count_params() == 128 * 2 * (32 + 40)
    assert layer.storage_bits() == 32 * 128 * 2 * (32 + 40)


@pytest.mark.parametrize("grid", [(6, 5), (3, 8)])
def test_nakkiran_from_layer_is_the_truncated_svd_of_each_filter(grid):
    dense = trained_dense(grid=grid)
    for rank in (1, 2, min(grid)):
        layer = RankConstrainedDense.from_layer(dense, input_grid=grid, rank=rank)
        for column, found in zip(ops.convert_to_numpy(dense.kernel).T, filters(layer), strict=True):
            u, s, vt = np.linalg.svd(column.reshape(grid))
            best = (u[:, :rank] * s[:rank]) @ vt[:rank]
            np.testing.assert_allclose(found, best, atol=1e-5)


def test_nakkiran_filters_of_their_own_fit_what_one_basis_of_the_same_size_does_not():
    dense = keras.layers.Dense(30)
    dense.build((None, 30))
    dense.kernel.assign(built(units=30, rank=1).reconstruct_kernel())
    own = RankConstrainedDense.from_layer(dense, input_grid=(6, 5))
    shared = FactorizedDense.from_layer(dense, rank=5)
    assert own.storage_bits() < shared.storage_bits() * 1.2
    kernel = ops.convert_to_numpy(dense.kernel)
    error = np.linalg.norm(shared.reconstruct_kernel() - kernel) / np.linalg.norm(kernel)
    assert error > 0.3
    np.testing.assert_allclose(own.reconstruct_kernel(), kernel, atol=1e-5)


@pytest.mark.parametrize("rank", [0.999, Energy(0.999), "evbmf"])
def test_ranks_may_be_chosen_by_the_filters_that_need_most(rank):
    dense = trained_dense(grid=(16, 14))
    kernel = np.einsum("tru,fru->tfu", RNG.normal(size=(16, 2, 7)), RNG.normal(size=(14, 2, 7)))
    kernel[..., 3] = np.outer(RNG.normal(size=16), RNG.normal(size=14))
    kernel += 1e-3 * RNG.normal(size=kernel.shape)
    dense.kernel.assign(kernel.reshape(16 * 14, 7))
    layer = RankConstrainedDense.from_layer(dense, input_grid=(16, 14), rank=rank)
    assert layer.rank == layer.get_config()["rank"] == 2


def test_spread_of_the_kernel_is_the_initializers():
    keras.utils.set_random_seed(1)
    layer = built(units=300, grid=(20, 15), rank=3, kernel_initializer="he_normal")
    assert np.std(layer.reconstruct_kernel()) == pytest.approx((2 / 300) ** 0.5, rel=0.1)


@on_tensorflow
def test_tflite_stores_the_factors_and_never_the_kernel():
    from keras_compress.export import to_tflite

    layer = built(units=64, grid=(40, 40), rank=2)
    x = RNG.normal(size=(3, 1600)).astype("float32")
    lite = to_tflite(keras.Sequential([keras.Input((1600,)), layer]), calibration=x)
    assert layer.storage_bits() / 8 < lite.nbytes < layer.storage_bits() / 8 + 4096
    assert lite.max_error < 1e-4
    assert layer.macs() == 2 * 64 * 40 * 41


@on_tensorflow
def test_tflite_of_a_kernel_smaller_than_its_factors_is_the_dense_layer():
    from keras_compress.export import to_tflite

    layer = built(grid=(6, 5), rank=5)
    assert to_tflite(keras.Sequential([keras.Input((30,)), layer])).ops == ["FULLY_CONNECTED"]
    assert layer.macs() == 30 * 9


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"input_grid": (6, 5), "rank": 6}, "the largest useful rank is 5"),
        ({"input_grid": (6, 5), "rank": 0}, "`rank` must be a positive integer"),
        ({"input_grid": (6, 5), "rank": 0.5}, "rank=0.5 is chosen by the singular values"),
        ({"input_grid": (6, 5, 2)}, r"pair \(frames, features\); got"),
        ({"input_grid": 30}, "`input_grid` must be a sequence of positive integers"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=f"RankConstrainedDense: .*{message}"):
        RankConstrainedDense(9, **arguments)


def test_a_grid_that_is_not_the_inputs_is_refused_at_build_and_by_from_layer():
    with pytest.raises(ValueError, match=r"RankConstrainedDense: .* 31; got input_grid=\(6, 5\)"):
        RankConstrainedDense(9, input_grid=(6, 5)).build((None, 31))
    with pytest.raises(ValueError, match=r"RankConstrainedDense: .* 30; got input_grid=\(7, 5\)"):
        RankConstrainedDense.from_layer(trained_dense(), input_grid=(7, 5))
