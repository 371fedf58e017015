"""`BlockSparseDense` against the dense masked product; what it stores, runs and exports."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.layers.test_protocol import on_tensorflow

RNG = np.random.default_rng(0)
BlockSparseDense = kc.layers.BlockSparseDense


def test_product_of_kept_blocks_equals_the_dense_masked_product():
    dense = keras.layers.Dense(40, name="fc")
    x = RNG.normal(size=(7, 24)).astype("float32")
    dense(x)
    kernel = keras.ops.convert_to_numpy(dense.kernel)
    layer = BlockSparseDense.from_layer(dense, block_size=(6, 8), density=0.5)
    sums = np.abs(kernel).reshape(4, 6, 5, 8).sum((1, 3))
    keep = np.argsort(np.argsort(sums, 0), 0) >= 2
    masked = kernel * keep.repeat(6, 0).repeat(8, 1)
    np.testing.assert_allclose(layer(x), x @ masked, atol=1e-5)


def test_blocks_of_the_seed_are_balanced_and_differ():
    layers = [BlockSparseDense(32, block_size=8, density=0.25, seed=seed) for seed in (0, 1)]
    maps = []
    for layer in layers:
        layer.build((None, 64))
        maps.append((layer.reconstruct_kernel() != 0).reshape(8, 8, 4, 8).all((1, 3)))
        assert (maps[-1].sum(0) == 2).all()
    assert (maps[0] != maps[1]).any()


def test_spread_of_outputs_is_that_of_a_dense_layer():
    x = RNG.normal(size=(200, 512)).astype("float32")
    layer = BlockSparseDense(256, block_size=16, density=0.125, kernel_initializer="he_normal")
    spread = float(np.std(keras.ops.convert_to_numpy(layer(x))))
    np.testing.assert_allclose(spread, np.sqrt(2.0), rtol=0.1)


def test_storage_is_kept_blocks_and_index_and_only_they_are_multiplied():
    layer = BlockSparseDense(96, block_size=(16, 32), density=0.25)
    layer.build((None, 128))
    # 3 block columns keep 2 of 8 blocks; an index of 3 bits each.
    assert layer.storage_bits() == 3 * 2 * (16 * 32 * 32 + 3) + 96 * 32
    assert layer.macs() == 3 * 2 * 16 * 32
    assert layer.macs((None, 5, 128)) == 5 * layer.macs()


@on_tensorflow
@pytest.mark.parametrize("padded", [False, True])
def test_export_is_small_matrix_products_of_the_kept_blocks(padded):
    units = 120 if padded else 128
    layer = BlockSparseDense(units, block_size=32, density=0.25, activation="relu")
    model = keras.Sequential([keras.Input((256,)), layer])
    dense = keras.Sequential([keras.Input((256,)), layer.expand()])
    x = RNG.normal(size=(4, 256)).astype("float32")
    lite = kc.export.to_tflite(model)
    assert "BATCH_MATMUL" in lite.ops and "FULLY_CONNECTED" not in lite.ops
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-5)
    assert lite.nbytes < 0.4 * kc.export.to_tflite(dense, storage="dense").nbytes


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="density"):
        BlockSparseDense(8, density=0)
    with pytest.raises(ValueError, match=r"block_size\[1\]"):
        BlockSparseDense(8, block_size=(4, 0))
