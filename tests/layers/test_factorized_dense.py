"""FactorizedDense: Sainath's bottleneck, against Dense with the explicit product."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.decomposition import Energy
from keras_compress.layers import FactorizedDense

RNG = np.random.default_rng(0)


def run(layer, inputs):
    return ops.convert_to_numpy(layer(np.asarray(inputs, "float32")))


def trained_dense(inputs=20, units=12, **arguments):
    dense = keras.layers.Dense(units, **arguments)
    dense.build((None, inputs))
    rng = np.random.default_rng(1)
    dense.kernel.assign(rng.normal(size=(inputs, units)))
    dense.bias.assign(rng.normal(size=units))
    return dense


@pytest.mark.parametrize("shape", [(4, 20), (2, 3, 20)])
def test_sainath_equals_dense_with_the_product_of_the_factors(shape):
    layer = FactorizedDense(12, activation="softmax", rank=5)
    layer.build(shape)
    layer.bias.assign(RNG.normal(size=12))
    left, right = (ops.convert_to_numpy(f) for f in layer.factors)
    assert left.shape == (20, 5) and right.shape == (5, 12)
    dense = keras.layers.Dense(12, activation="softmax")
    dense.build(shape)
    dense.set_weights([left @ right, layer.bias])
    x = RNG.normal(size=shape)
    np.testing.assert_allclose(run(layer, x), run(dense, x), atol=1e-5)


def test_sainath_numerical_rank_of_the_kernel_is_at_most_the_bottleneck():
    layer = FactorizedDense(30, rank=4)
    layer.build((None, 50))
    kernel = ops.convert_to_numpy(layer.expand().kernel)
    assert np.linalg.matrix_rank(kernel, tol=1e-5 * np.linalg.norm(kernel)) == 4


def test_sainath_params_of_the_papers_layer():
    layer = FactorizedDense(2220, rank=128, use_bias=False)
    layer.build((None, 1024))
    assert layer.count_params() == 128 * (1024 + 2220) == 415_232
    assert layer.expand().count_params() == 1024 * 2220 == 2_273_280
    assert layer.macs((None, 1024)) == 415_232
    assert layer.macs((None, 7, 1024)) == 7 * 415_232
    assert layer.storage_bits() == 32 * 415_232


def test_sainath_rank_stays_bounded_while_training():
    keras.utils.set_random_seed(0)
    x = RNG.normal(size=(64, 10)).astype("float32")
    y = np.argmax(x @ RNG.normal(size=(10, 8)), axis=1)
    layer = FactorizedDense(8, activation="softmax", rank=2)
    model = keras.Sequential([keras.Input((10,)), layer])
    model.compile(keras.optimizers.Adam(0.05), loss="sparse_categorical_crossentropy")
    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    values = np.linalg.svd(layer.reconstruct_kernel(), compute_uv=False)
    assert values[2] < 1e-5 * values[0]


@pytest.mark.parametrize("inputs,units", [(20, 12), (12, 20), (1, 9), (9, 1)])
def test_from_layer_is_the_best_kernel_of_its_rank(inputs, units):
    dense = trained_dense(inputs, units)
    kernel = ops.convert_to_numpy(dense.kernel)
    values = np.linalg.svd(kernel, compute_uv=False)
    for rank in (1, len(values) // 2, len(values)):
        rank = max(1, rank)
        layer = FactorizedDense.from_layer(dense, rank=rank)
        squared = np.sum((layer.reconstruct_kernel() - kernel) ** 2)
        assert squared == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-4, abs=1e-9)


def test_from_layer_chooses_the_rank_by_policy_and_writes_it_down():
    dense = trained_dense()
    signal = RNG.normal(size=(20, 3)) @ RNG.normal(size=(3, 12))
    dense.kernel.assign(signal + 0.01 * RNG.normal(size=signal.shape))
    for rank in (None, "evbmf", 0.999, Energy(0.999)):
        options = {} if rank is None else {"rank": rank}
        layer = FactorizedDense.from_layer(dense, **options)
        assert layer.rank == layer.get_config()["rank"] == 3


def test_kernel_initializer_is_the_spread_of_the_product():
    keras.utils.set_random_seed(1)
    layer = FactorizedDense(400, rank=50, kernel_initializer="he_normal")
    layer.build((None, 600))
    assert np.std(layer.reconstruct_kernel()) == pytest.approx((2 / 600) ** 0.5, rel=0.1)


@pytest.mark.parametrize("rank", [13, 0, 0.5, "evbmf", (2, 3), None])
def test_ranks_that_cannot_be_are_refused_at_construction(rank):
    with pytest.raises(ValueError, match="FactorizedDense: .*rank"):
        FactorizedDense(12, rank=rank)


def test_rank_above_the_input_size_is_refused_at_build():
    with pytest.raises(ValueError, match="got rank=10, the largest useful rank is 6"):
        FactorizedDense(12, rank=10).build((None, 6))
