"""CirculantDense: what the protocol tests do not cover."""

import keras
import numpy as np
import pytest
import scipy.linalg
from keras import ops

from keras_compress.layers import CirculantDense

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="conversion needs the TensorFlow backend"
)


def built(units, input_size, **arguments):
    layer = CirculantDense(units, **arguments)
    layer.build((None, input_size))
    return layer


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def signs(layer):
    """The diagonal of D, read off the outputs of a layer whose C is the identity."""
    layer.circulants.assign(np.eye(1, layer.block_size)[None])
    outputs = layer(np.ones((1, layer.input_channels), "float32"))
    diagonal = ops.convert_to_numpy(outputs)[0]
    np.testing.assert_allclose(np.abs(diagonal), 1, atol=1e-5)
    return np.sign(diagonal)


def test_cheng_output_is_x_D_C_transposed():
    layer = built(9, 9, use_bias=False, seed=3)
    matrix = scipy.linalg.circulant(ops.convert_to_numpy(layer.circulants)[0, 0])
    x = inputs(4, 9)
    outputs = ops.convert_to_numpy(layer(x))
    d = np.diag(signs(layer))
    np.testing.assert_allclose(outputs, x @ d @ matrix.T, atol=1e-5)


def test_fewer_outputs_are_the_first_of_the_full_circulant_and_fewer_inputs_are_padded():
    x = inputs(3, 12)
    narrow = built(5, 12, use_bias=False, random_signs=False)
    matrix = scipy.linalg.circulant(ops.convert_to_numpy(narrow.circulants)[0, 0])
    np.testing.assert_allclose(narrow(x), (x @ matrix.T)[:, :5], atol=1e-5)
    wide = built(12, 7, use_bias=False, random_signs=False)
    matrix = scipy.linalg.circulant(ops.convert_to_numpy(wide.circulants)[0, 0])
    np.testing.assert_allclose(wide(x[:, :7]), x[:, :7] @ matrix.T[:7], atol=1e-5)


def test_blocks_are_circulants():
    layer = built(7, 10, block_size=4, use_bias=False, random_signs=False)
    vectors = ops.convert_to_numpy(layer.circulants)
    assert vectors.shape == (3, 2, 4)
    rows = [[scipy.linalg.circulant(vectors[i, j]) for i in range(3)] for j in range(2)]
    x = inputs(3, 10)
    padded = np.pad(x, ((0, 0), (0, 2)))
    np.testing.assert_allclose(layer(x), (padded @ np.block(rows).T)[:, :7], atol=1e-5)


def test_number_of_free_weights():
    assert built(64, 64, use_bias=False).count_params() == 64
    assert built(64, 128, use_bias=False, block_size=16).count_params() == 64 * 128 // 16
    layer = built(64, 128, block_size=16)
    assert layer.storage_bits() == 32 * (64 * 128 // 16 + 64)


def test_signs_are_no_weight_and_training_leaves_them_alone():
    layer = CirculantDense(16, seed=5, use_bias=False)
    model = keras.Sequential([keras.Input((16,)), layer])
    model.compile("sgd", "mse")
    assert [w.name for w in layer.weights] == ["circulants"]
    model.fit(inputs(32, 16), inputs(32, 16, seed=1), epochs=2, verbose=0)
    trained = layer.reconstruct_kernel()
    vector = ops.convert_to_numpy(layer.circulants)[0, 0]
    d = signs(built(16, 16, seed=5, use_bias=False))
    np.testing.assert_allclose(trained, d[:, None] * scipy.linalg.circulant(vector).T)


def test_one_seed_gives_one_D_also_after_saving(tmp_path):
    first, second = (built(40, 40, seed=11, use_bias=False) for _ in range(2))
    other = built(40, 40, seed=12, use_bias=False)
    model = keras.Sequential([keras.Input((40,)), first])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    expected = signs(first)
    np.testing.assert_array_equal(signs(second), expected)
    np.testing.assert_array_equal(signs(loaded), expected)
    assert (signs(other) != expected).any()
    # The stream is the same in every process and version.
    np.testing.assert_array_equal(expected[:10], [-1, -1, -1, 1, -1, -1, -1, -1, 1, 1])


def test_a_seed_that_is_drawn_follows_set_random_seed_and_stays_in_the_configuration():
    drawn = []
    for _ in range(2):
        keras.utils.set_random_seed(4)
        drawn.append([CirculantDense(4).seed, CirculantDense(4).seed])
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]
    layer = CirculantDense(4)
    assert CirculantDense.from_config(layer.get_config()).seed == layer.seed


@pytest.mark.parametrize("options", [{"seed": 9}, {"random_signs": False}])
def test_from_layer_recovers_a_kernel_of_its_form(options):
    source = built(20, 33, block_size=8, **options)
    dense = source.expand()
    layer = CirculantDense.from_layer(dense, block_size=8, **options)
    np.testing.assert_allclose(layer.reconstruct_kernel(), dense.kernel, atol=1e-6)
    x = inputs(3, 33)
    np.testing.assert_allclose(layer(x), dense(x), atol=1e-5)


def test_more_free_weights_fit_better():
    dense = keras.layers.Dense(24)
    dense.build((None, 48))
    kernel = ops.convert_to_numpy(dense.kernel)
    errors = [
        np.linalg.norm(
            CirculantDense.from_layer(dense, block_size=b, seed=0).reconstruct_kernel() - kernel
        )
        for b in (2, 4, 8, 24)
    ]
    # The mean of b independent entries keeps 1 / b of their energy.
    expected = [np.linalg.norm(kernel) * (1 - 1 / b) ** 0.5 for b in (2, 4, 8, 24)]
    np.testing.assert_allclose(errors, expected, rtol=0.05)


@pytest.mark.parametrize("block_size", [None, 64])
def test_spread_of_the_kernel_is_the_initializers(block_size):
    keras.utils.set_random_seed(1)
    layer = built(1024, 1024, block_size=block_size)
    assert np.std(layer.reconstruct_kernel()) == pytest.approx((2 / 2048) ** 0.5, rel=0.1)


def test_open_time_axis():
    layer = CirculantDense(6, block_size=4)
    model = keras.Sequential([keras.Input((None, 8)), layer])
    x = inputs(2, 3, 8)
    np.testing.assert_allclose(model(x), layer.expand()(x), atol=1e-5)


def test_integer_inputs_give_float_outputs():
    layer = built(6, 8, block_size=4)
    x = np.arange(16).reshape(2, 8)
    np.testing.assert_allclose(layer(x), layer(x.astype("float32")), atol=1e-5)


@on_tensorflow
@pytest.mark.parametrize(
    "block_size,operations,graph_bytes",
    [
        (32, {"FULLY_CONNECTED", "BATCH_MATMUL", "RESHAPE", "TRANSPOSE", "MUL", "ADD"}, 6_000),
        (
            None,
            {"FULLY_CONNECTED", "RESHAPE", "TRANSPOSE", "MUL", "ADD", "SUB"}
            | {"STRIDED_SLICE", "CONCATENATION"},
            8_000,
        ),
    ],
)
def test_tflite_stores_spectra_and_dft_matrices_and_is_exact(block_size, operations, graph_bytes):
    from keras_compress.export import to_tflite

    n = 512
    layer = CirculantDense(n, block_size=block_size, bias_initializer="ones")
    model = keras.Sequential([keras.Input((n,)), layer])
    lite = to_tflite(model, calibration=inputs(2, n))
    # Real and imaginary parts of the spectra once, and the matrices: 32 x 34 and 68 x 32; or, for
    # 512 = 32 x 16 points, those and 64 x 32, 32 x 32 and the twiddles.
    if block_size:
        constants = 2 * 17 * 16 * 16 + 32 * 34 + 68 * 32
    else:
        constants = 2 * 17 * 16 + 32 * 34 + 68 * 32 + 64 * 32 + 32 * 32 + 2 * 17 * 16
    signs_and_bias = 2 * n
    assert lite.nbytes < 4 * (constants + signs_and_bias) + graph_bytes
    assert set(lite.ops) <= operations
    assert lite.max_error < 1e-5


@on_tensorflow
def test_tflite_of_a_small_kernel_is_the_dense_layer():
    from keras_compress.export import to_tflite

    model = keras.Sequential([keras.Input((16,)), CirculantDense(16, block_size=8)])
    lite = to_tflite(model, calibration=inputs(2, 16))
    assert lite.ops == ["FULLY_CONNECTED"]
    assert model.layers[0].macs() == 16 * 16


def test_macs_are_those_of_the_exported_form():
    # One stage: 32 blocks of 128 each way, 65 frequencies.
    expected = 32 * 128 * 130 + 65 * 4 * 32 * 32 + 32 * 260 * 128
    layer = built(4096, 4096, block_size=128)
    assert layer.macs() == expected
    assert layer.macs((None, 7, 4096)) == 7 * expected


@pytest.mark.parametrize("block_size", [0, 1, -4, 2.0, "8", True])
def test_bad_block_sizes_are_refused_at_construction(block_size):
    with pytest.raises(ValueError, match=r"`block_size` must be"):
        CirculantDense(12, block_size=block_size)


def test_too_large_a_block_is_refused_at_build_and_by_from_layer():
    CirculantDense(12, block_size=20).build((None, 20))
    with pytest.raises(ValueError, match=r"larger of input size and units, 20; got block_size=21"):
        CirculantDense(12, block_size=21).build((None, 20))
    dense = keras.layers.Dense(12)
    dense.build((None, 20))
    with pytest.raises(ValueError, match="block_size=21"):
        CirculantDense.from_layer(dense, block_size=21)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "a", True])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="`seed` must be"):
        CirculantDense(12, seed=seed)
