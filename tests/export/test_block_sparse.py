"""Block-sparse kernels as small matmuls: exact, in few groups, for rows of any number."""

import keras
import numpy as np
import pytest

from keras_compress.export.block_sparse import block_groups, stored_entries
from keras_compress.layers.stored_kernel import BlockSparseKernel
from tests.export.stored_models import assert_runs_like, dense, export

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


def block_sparse(rows, columns, block=(16, 16), density=0.25, dtype="float32"):
    pattern = RNG.random((rows // block[0], columns // block[1])) < density
    kernel = RNG.normal(size=(rows, columns)) * np.kron(pattern, np.ones(block))
    return BlockSparseKernel(kernel.astype(dtype), block)


@pytest.mark.parametrize("columns", [1, 2, 5, 40])
def test_groups_hold_every_column_once_and_all_its_blocks(columns):
    occupied = RNG.random((12, columns)) < 0.3
    occupied[:, 1::7] = False
    groups = block_groups(occupied, (16, 16))
    members = np.concatenate([group for group, _ in groups])
    np.testing.assert_array_equal(np.sort(members), np.nonzero(occupied.any(0))[0])
    for group, kept in groups:
        assert kept == occupied[:, group].sum(0).max()


def test_groups_are_the_best_of_all_splits_of_sorted_columns():
    occupied = np.arange(16)[:, None] < np.array([[1, 1, 9, 2, 9, 2, 16, 1]])
    counts = np.sort(occupied.sum(0))[::-1]
    area, best = 32 * 32, np.inf
    for cuts in range(2 ** (len(counts) - 1)):
        ends = [i + 1 for i in range(len(counts) - 1) if cuts >> i & 1] + [len(counts)]
        starts = [0, *ends[:-1]]
        if len(ends) <= 4:
            padded = sum(counts[a] * (b - a) for a, b in zip(starts, ends, strict=True))
            best = min(best, padded * area + 4096 * len(ends))
    groups = block_groups(occupied, (32, 32))
    assert sum(len(c) * kept for c, kept in groups) * area + 4096 * len(groups) == best


@pytest.mark.parametrize("block", [(16, 16), (32, 64), (64, 16)])
@pytest.mark.parametrize("activation,use_bias", [("relu", True), (None, False), ("relu", False)])
def test_product_is_exact(block, activation, use_bias):
    kernel = block_sparse(128, 192, block)
    layer = dense(kernel, activation=activation, use_bias=use_bias)
    model, lite = export(layer, (128,))
    assert lite.layers[0].exact and "BATCH_MATMUL" in lite.ops
    assert ("ADD" in lite.ops) == (activation is not None)
    assert_runs_like(model, lite, RNG.normal(size=(1, 128)).astype("float32"), 1e-5)


@pytest.mark.parametrize(
    "shape,batch_size", [((), 7), ((), None), ((5,), 2), ((5,), None), ((None,), 1)]
)
def test_rows_may_be_many_and_one_axis_open(shape, batch_size):
    model, lite = export(dense(block_sparse(64, 96)), (*shape, 64), batch_size=batch_size)
    assert "BATCH_MATMUL" in lite.ops
    rows = tuple(s or 3 for s in ((batch_size or 4), *shape))
    assert_runs_like(model, lite, RNG.normal(size=(*rows, 64)).astype("float32"), 1e-5)


def test_two_open_axes_fall_back_to_a_sparse_tensor():
    model, lite = export(dense(block_sparse(64, 96)), (None, 64), batch_size=None)
    assert lite.layers[0].form.startswith("float32 sparse")
    assert_runs_like(model, lite, RNG.normal(size=(2, 3, 64)).astype("float32"), 1e-5)


def test_uneven_columns_are_stored_with_little_padding():
    kernel = np.zeros((512, 512), "float32")
    kernel[:, :64] = RNG.normal(size=(512, 64))
    for column in range(64, 512, 32):
        kernel[column - 32 : column, column : column + 32] = RNG.normal(size=(32, 32))
    stored = BlockSparseKernel(kernel, (32, 32))
    assert stored_entries(stored) == np.count_nonzero(kernel)
    model, lite = export(dense(stored), (512,))
    assert lite.layers[0].nbytes < 1.05 * 4 * np.count_nonzero(kernel)
    assert_runs_like(model, lite, RNG.normal(size=(1, 512)).astype("float32"), 1e-5)


def test_zero_columns_and_half_precision():
    kernel = block_sparse(64, 96, dtype="float16")
    kernel.kernel[:, 32:64] = 0
    model, lite = export(dense(kernel, activation="relu6"), (64,), batch_size=2)
    assert not lite.layers[0].exact
    assert_runs_like(model, lite, RNG.normal(size=(2, 64)).astype("float32"), 1e-5)
