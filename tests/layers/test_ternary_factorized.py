"""TernaryFactorizedDense and -Conv2D: explicit ternary products, gradients, and int2 storage."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.decomposition import decompose
from keras_compress.export.report import layer_rows
from keras_compress.layers import TernaryFactorizedConv2D, TernaryFactorizedDense
from tests.gradients import gradient

RNG = np.random.default_rng(0)


def run(layer, x):
    return ops.convert_to_numpy(layer(np.asarray(x, "float32")))


def dense(n_in, units, **arguments):
    layer = keras.layers.Dense(units, bias_initializer="normal", **arguments)
    layer.build((None, n_in))
    layer.kernel.assign(0.1 * RNG.normal(size=(n_in, units)))
    return layer


def test_wang_layer_starts_as_the_ternary_factors_of_the_kernel():
    source = dense(20, 12)
    layer = TernaryFactorizedDense.from_layer(source, rank=9)
    expected = decompose(ops.convert_to_numpy(source.kernel), "ternary", 9)
    for found, array in zip(layer.factors().arrays, expected.arrays, strict=True):
        np.testing.assert_allclose(found, array, rtol=1e-5)
    again = TernaryFactorizedDense.from_layer(source, factors=expected)
    np.testing.assert_array_equal(again.reconstruct_kernel(), layer.reconstruct_kernel())


def test_wang_output_is_two_ternary_products_and_one_multiplication_a_term():
    layer = TernaryFactorizedDense(5, rank=7, bias_initializer="normal")
    layer.build((None, 11))
    scale = RNG.normal(size=7)
    layer.scale.assign(scale)
    x = RNG.normal(size=(3, 11))
    first, last = ops.convert_to_numpy(layer.first), ops.convert_to_numpy(layer.last)
    level, other = map(ops.convert_to_numpy, (layer.first_level, layer.last_level))
    ternary = np.sign(first) * (np.abs(first) > level / 2)
    mixture = np.sign(last) * (np.abs(last) > other[:, None] / 2)
    expected = ((x @ ternary) * (scale * level * other)) @ mixture
    expected = expected + ops.convert_to_numpy(layer.bias)
    np.testing.assert_allclose(run(layer, x), expected, atol=1e-5)
    assert layer.multiplications((None, 4, 11)) == 4 * 7
    assert layer.macs((None, 4, 11)) == 4 * 7 * (11 + 1 + 5)
    # Scales that training has made negative change the signs of a column.
    assert (layer.factors().arrays[1] >= 0).all()
    np.testing.assert_allclose(run(layer.expand(), x), expected, atol=1e-5)


def test_wang_convolution_multiplies_once_a_term_and_position():
    source = keras.layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)
    x = RNG.normal(size=(2, 9, 8, 4)).astype("float32")
    source(x)
    layer = TernaryFactorizedConv2D.from_layer(source, rank=5)
    expected = decompose(ops.convert_to_numpy(source.kernel), "ternary", 5).reconstruct()
    source.kernel.assign(expected)
    np.testing.assert_allclose(run(layer, x), run(source, x), atol=1e-5)
    assert layer.multiplications(x.shape) == 5 * 4 * 5
    assert layer.macs(x.shape) == 5 * 4 * 5 * (36 + 1 + 6)
    assert layer.storage_bits() == 2 * (36 * 5 + 5 * 6) + 32 * 5


def test_wang_gradients_pass_straight_through_to_the_latent_factors():
    layer = TernaryFactorizedDense.from_layer(dense(8, 6, use_bias=False), rank=4)
    x = RNG.normal(size=(5, 8)).astype("float32")
    upstream = RNG.normal(size=(5, 6)).astype("float32")
    _, d, y = layer.factors().arrays
    level = ops.convert_to_numpy(layer.first_level)

    def loss(first):
        # The layer with another latent factor.
        quantized = layer.quantizer(first / level)
        _, scale, last = layer.ternary_factors()
        return ops.sum(layer.mix(ops.matmul(x, quantized), scale, last) * upstream)

    found = gradient(loss, ops.convert_to_numpy(layer.first))
    np.testing.assert_allclose(found, x.T @ (upstream @ (d / level * y.T)), atol=1e-5)


def test_wang_fine_tuning_moves_ternary_weights_and_lowers_the_error():
    keras.utils.set_random_seed(0)
    source = dense(16, 12, use_bias=False)
    layer = TernaryFactorizedDense.from_layer(source, rank=4)
    # Inputs whose directions do not count alike, as the kernel alone does not say.
    x = (RNG.normal(size=(256, 16)) * np.logspace(0.5, -1, 16)).astype("float32")
    model = keras.Sequential([keras.Input((16,)), layer])
    model.compile(keras.optimizers.Adam(3e-3), "mse")
    before = layer.factors().arrays
    start = model.evaluate(x, run(source, x), verbose=0)
    model.fit(x, run(source, x), batch_size=32, epochs=20, verbose=0)
    after = layer.factors().arrays
    assert model.evaluate(x, run(source, x), verbose=0) < 0.9 * start
    assert (before[0] != after[0]).any() and (before[2] != after[2]).any()
    assert set(np.unique(after[0])) | set(np.unique(after[2])) == {-1.0, 0.0, 1.0}


def test_regularizer_of_the_kernel_leaves_scales_alone():
    layer = TernaryFactorizedDense(6, rank=4, kernel_regularizer="l2")
    layer.build((None, 8))
    regularized = [w.name for w in layer.weights if w.regularizer is not None]
    assert regularized == ["first", "last"]
    assert [w.name for w in layer.non_trainable_weights] == ["first_level", "last_level"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs the converter")
def test_tflite_stores_both_factors_as_int2(tmp_path):
    layer = TernaryFactorizedDense.from_layer(dense(128, 96, activation="relu"), rank=64)
    layer.scale.assign(np.where(np.arange(64) % 3, 1, -1) * ops.convert_to_numpy(layer.scale))
    model = keras.Sequential([keras.Input((128,)), layer, keras.layers.Dense(3)])
    lite = kc.export.to_tflite(model, tmp_path / "model.tflite")
    assert [(s.form, s.kernel) for s in lite.layers] == [("int2", "FULLY_CONNECTED int2")] * 2
    assert [s.nbytes for s in lite.layers] == [128 * 64 // 4, 64 * 96 // 4]
    x = RNG.normal(size=(16, 128)).astype("float32")
    expected = run(model, x)
    assert np.abs(lite.predict(x) - expected).max() < 0.04 * np.abs(expected).max()
    (row,) = [row for row in layer_rows(lite, runs=0) if row.layer == layer.name]
    assert row.form == "int2" and row.dense_bytes == 4 * (128 * 96 + 96)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs the converter")
def test_tflite_of_a_convolution_by_size_has_two_bits_a_weight(tmp_path):
    source = keras.layers.Conv2D(64, 3, padding="same")
    source.build((None, 6, 6, 32))
    layer = TernaryFactorizedConv2D.from_layer(source, rank=32)
    model = keras.Sequential([keras.Input((6, 6, 32)), layer])
    x = RNG.normal(size=(4, 6, 6, 32)).astype("float32")
    forms = {}
    for goal in ("latency", "size"):
        lite = kc.export.to_tflite(model, tmp_path / f"{goal}.tflite", optimize_for=goal)
        forms[goal] = [s.form for s in lite.layers]
        expected = run(model, x)
        assert np.abs(lite.predict(x) - expected).max() < 0.04 * np.abs(expected).max()
    assert forms["latency"][0] == "int8" and forms["latency"][1] in ("int2", "int4")
    assert "int8" not in forms["size"]


@pytest.mark.parametrize(
    "options,message",
    [
        ({}, "give `rank`, a number of terms, or `factors`"),
        ({"rank": 0.5}, "takes `rank` as an integer"),
        ({"rank": 49}, "largest useful rank is 48"),
        ({"factors": decompose(np.ones((8, 6)), "svd", 1)}, "form='ternary'; got SVDFactors"),
        ({"factors": decompose(np.ones((8, 5)), "ternary", 1)}, "of the shape"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TernaryFactorizedDense.from_layer(dense(8, 6), **options)


def test_ranks_above_the_entries_are_refused_when_the_inputs_are_known():
    with pytest.raises(ValueError, match="largest useful rank is 6"):
        TernaryFactorizedDense(3, rank=7).build((None, 2))
    with pytest.raises(ValueError, match="`groups` must be 1"):
        TernaryFactorizedConv2D(4, 3, groups=2, rank=4)
