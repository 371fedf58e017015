"""Stored kernels: what they hold, and how grids and blocks are found."""

import numpy as np
import pytest

from keras_compress.layers.stored_kernel import (
    BlockSparseKernel,
    CodebookKernel,
    GridKernel,
    HashedKernel,
    SparseKernel,
    block_of,
    grid_of,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "low,high,bits",
    [(-1, 1, 2), (-2, 1, 2), (0, 0, 2), (-2, 2, 4), (-7, 7, 4), (-8, 7, 8), (-127, 127, 8)],
)
def test_bits_of_the_narrowest_integer_that_every_litert_kernel_computes_right(low, high, bits):
    assert GridKernel([[low, high]], 0.5).bits == bits


def test_no_integer_holds_minus_128():
    assert GridKernel([[-128, 0]], 0.5).bits is None


@pytest.mark.parametrize("ints", [[[128, 0]], [[0, -129]], np.array([[300]], np.int32)])
def test_grid_kernel_refuses_integers_that_would_wrap(ints):
    with pytest.raises(ValueError, match="8 bits"):
        GridKernel(ints, 1.0)


def test_dense_of_each_kernel_is_the_matrix_it_stands_for():
    ints, scale = RNG.integers(-3, 4, size=(5, 4)), RNG.random(4)
    expected = [[i * s for i, s in zip(row, scale, strict=True)] for row in ints]
    np.testing.assert_allclose(GridKernel(ints, scale).dense(), expected, rtol=1e-6)
    codes, values = RNG.integers(0, 3, size=(2, 4)), [0.5, -1.0, 7.0]
    expected = [[values[c] for c in row] for row in codes]
    np.testing.assert_array_equal(CodebookKernel(codes, values).dense(), expected)
    hashed = HashedKernel(np.array([1.0, 2.0, 4.0]), 3, (6, 5)).dense()
    assert hashed.shape == (6, 5) and set(np.abs(hashed).ravel()) <= {1.0, 2.0, 4.0}
    kernel = np.kron(np.eye(2), np.ones((16, 16))).astype("float16")
    for stored in (SparseKernel(kernel), BlockSparseKernel(kernel, (16, 16))):
        assert stored.dense().dtype == np.float32
        np.testing.assert_array_equal(stored.dense(), kernel)
    assert SparseKernel(kernel).density == 0.5
    np.testing.assert_array_equal(BlockSparseKernel(kernel, (16, 32)).occupied, np.ones((2, 1)))


@pytest.mark.parametrize("count", [1, 2, 7, 100, 127])
def test_grid_of_finds_the_coarsest_grid(count):
    ints = np.array([-count, 0, 1, count])
    found, step = grid_of((ints * 0.037).astype("float32"))
    np.testing.assert_array_equal(found, ints)
    assert step == pytest.approx(0.037, rel=1e-5)
    coarse, step = grid_of((3 * ints[[0, 1, 3]] * 0.01).astype("float32"))
    assert np.abs(coarse).max() == 1 and step == pytest.approx(0.03 * count, rel=1e-5)


@pytest.mark.parametrize("values", [[1.0, 2**0.5, 3**0.5], [1.0, 128.0], [0.1, 0.25001, 0.9]])
def test_grid_of_refuses_values_on_no_grid_of_8_bits(values):
    assert grid_of(values) is None


def test_grid_of_zeros_alone():
    ints, step = grid_of([0.0, 0.0])
    assert not ints.any() and step == 1.0


@pytest.mark.parametrize("block", [(16, 16), (32, 64), (128, 16), (64, 128)])
def test_block_of_finds_the_block_of_a_pattern(block):
    # Alternating rows of blocks, so that no larger block is zero.
    pattern = np.indices((256 // block[0], 256 // block[1])).sum(0) % 2
    kernel = np.kron(pattern, RNG.random(block) + 0.1)
    assert block_of(kernel) == block


@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (32, 32)])
def test_block_of_needs_zero_blocks_and_sides_of_whole_blocks(shape):
    assert block_of(np.ones(shape)) is None
