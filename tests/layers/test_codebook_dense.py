"""CodebookDense: shared gradients, zeros, tables (Han et al. 2016, Wu et al. 2016)."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import CodebookDense
from keras_compress.sharing import fit_codebook
from tests.gradients import gradient

RNG = np.random.default_rng(0)


def trained_dense(n_in, units, zeros=0.0):
    layer = keras.layers.Dense(units, bias_initializer="normal", name="fc")
    layer.build((None, n_in))
    kernel = RNG.normal(size=(n_in, units))
    kernel[RNG.random(size=kernel.shape) < zeros] = 0
    layer.kernel.assign(kernel)
    return layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"k": 5},
        {"k": 5, "keep_zero": True},
        {"method": "pq", "segment": 4, "k": 3},
        {"method": "rq", "segment": 6, "k": 3},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_han_centre_gradient_is_the_bucket_sum_of_the_kernel_gradient(options, training):
    layer = CodebookDense(20, use_bias=False, **options)
    layer.build((None, 12))
    x, weights = RNG.normal(size=(7, 12)), RNG.normal(size=(7, 20))
    x, weights = x.astype("float32"), weights.astype("float32")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ops.sum(layer(x, training=training) * weights)
        found = ops.convert_to_numpy(tape.gradient(loss, layer.centres.value))
    else:
        state = [variable.value for variable in layer.non_trainable_variables]

        def loss(centres):
            outputs, _ = layer.stateless_call([centres], state, x, training=training)
            return ops.sum(outputs * weights)

        found = gradient(loss, layer.centres.value)
    of_kernel = x.T @ weights
    codes = ops.convert_to_numpy(layer.codes).astype(int)
    expected = np.zeros((layer.stages, layer.centres.shape[1], layer.k, layer.centres.shape[3]))
    length = expected.shape[3]
    for stage, row, output in np.ndindex(layer.stages, 12, 20):
        book = 0 if expected.shape[1] == 1 else row // length
        code = codes[stage, row // length, output]
        expected[stage, book, code, row % length] += of_kernel[row, output]
    np.testing.assert_allclose(found, expected[:, :, int(layer.keep_zero) :], atol=1e-4)


def test_han_zeros_stay_zero_and_assignments_stay_while_centres_train():
    layer = CodebookDense.from_layer(trained_dense(30, 20, zeros=0.7), bits=3)
    assert layer.keep_zero
    before = layer.reconstruct_kernel()
    model = keras.Sequential([keras.Input((30,)), layer])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    codes = ops.convert_to_numpy(layer.codes).copy()
    model.fit(RNG.normal(size=(64, 30)), RNG.normal(size=(64, 20)), epochs=3, verbose=0)
    after = layer.reconstruct_kernel()
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.codes), codes)
    np.testing.assert_array_equal(after == 0, before == 0)
    assert np.mean(after == 0) > 0.6 and len(np.unique(after)) == 8
    assert np.abs(after - before).max() > 0.05


def test_only_the_centres_are_trainable_and_codes_take_a_byte():
    layer = CodebookDense(20, k=5, use_bias=False)
    layer.build((None, 12))
    assert [weight.name for weight in layer.trainable_weights] == ["centres"]
    assert layer.codes.dtype == "uint8"
    wide = CodebookDense(20, k=300)
    wide.build((None, 12))
    assert wide.codes.dtype == "uint16"


@pytest.mark.parametrize("method,stages", [("pq", None), ("rq", 3)])
def test_wu_lookup_equals_the_dense_result_with_decoded_weights(method, stages):
    dense = trained_dense(24, 50)
    options = {"method": method, "segment": 4, "k": 8, "stages": stages}
    layer = CodebookDense.from_layer(dense, lookup=True, **options)
    x = RNG.normal(size=(5, 24)).astype("float32")
    kernel = fit_codebook(ops.convert_to_numpy(dense.kernel), **options).decode()
    expected = x @ kernel + ops.convert_to_numpy(dense.bias)
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    decoded = CodebookDense.from_layer(dense, **options)
    np.testing.assert_allclose(decoded(x), expected, atol=1e-5)


def test_wu_macs_of_tables_are_k_times_the_inputs_and_one_addition_for_each_code():
    c_in, c_out, k, m = 24, 50, 8, 6
    options = {"method": "pq", "segment": c_in // m, "k": k}
    layer = CodebookDense(c_out, lookup=True, **options)
    layer.build((None, c_in))
    assert layer.macs() == k * c_in + m * c_out
    assert layer.macs((None, 3, c_in)) == 3 * (k * c_in + m * c_out)
    dense = CodebookDense(c_out, **options)
    dense.build((None, c_in))
    assert dense.macs() == c_in * c_out


def test_from_layer_takes_a_codebook_that_is_fitted_already():
    dense = trained_dense(12, 40)
    book = fit_codebook(RNG.normal(size=(12, 40)), "rq", segment=6, k=5)
    layer = CodebookDense.from_layer(dense, codebook=book, lookup=True)
    np.testing.assert_array_equal(layer.reconstruct_kernel(), book.decode())
    assert (layer.method, layer.segment, layer.k, layer.stages) == ("rq", 6, 5, 2)
    assert layer.codebook().storage_bits() == book.storage_bits()
    other = fit_codebook(RNG.normal(size=(12, 30)), "pq")
    with pytest.raises(ValueError, match=r"kernel of shape \(12, 40\); got one of \(12, 30\)"):
        CodebookDense.from_layer(dense, codebook=other)


def test_same_seed_gives_the_same_codes_and_centres():
    pairs = [
        CodebookDense(8, k=4, kernel_initializer=keras.initializers.GlorotUniform(seed))
        for seed in (1, 1, 2)
    ]
    for layer in pairs:
        layer.build((None, 16))
    first, same, other = (layer.reconstruct_kernel() for layer in pairs)
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0


@pytest.mark.parametrize(
    "options,message",
    [
        ({"method": "binary"}, "`method` must be one of 'kmeans', 'pq', 'rq'"),
        ({"k": 4, "bits": 2}, "CodebookDense: give `k` or `bits`"),
        ({"method": "pq", "stages": 2}, "only method='rq'"),
        ({"segment": 0}, "`segment` must be a positive integer"),
        ({"method": "pq", "keep_zero": True}, "`keep_zero` needs method='kmeans'"),
        ({"lookup": True}, "Use method='pq' or 'rq'"),
    ],
)
def test_bad_arguments_are_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        CodebookDense(8, **options)


def test_tables_of_one_book_for_all_are_refused_by_from_layer_too():
    with pytest.raises(ValueError, match="Use method='pq' or 'rq'"):
        CodebookDense.from_layer(trained_dense(12, 20), bits=2, lookup=True)


def test_segments_that_do_not_divide_are_refused_at_build():
    with pytest.raises(ValueError, match="segment=5. Divisors: 1, 2, 3, 4, 6, 12"):
        CodebookDense(8, method="pq", segment=5).build((None, 12))
