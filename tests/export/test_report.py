"""Tables: what each layer became, where its bytes are, which operation runs it, what it costs."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.export import LiteModel, to_tflite
from keras_compress.export.report import OTHER, layer_rows

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

L = keras.layers


def nested():
    """Two layers of one name, batch norm to fold, a layer called twice, operations of no layer."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2))
    block = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            L.Conv2D(4, 3, padding="same", use_bias=False, name="c"),
            L.BatchNormalization(name="bn"),
            L.ReLU(),
        ],
        name="block",
    )
    y = block(L.Conv2D(4, 3, name="c", activation="gelu", bias_initializer="normal")(image))
    y = L.Flatten()(L.Add()([y, block(y)]))
    shared = L.Dense(144, name="shared", use_bias=False)
    y = keras.ops.abs(shared(shared(y)))
    y = kc.layers.BinaryDense(64, name="binary", use_bias=False)(y)
    y = kc.layers.TTDense(256, rank=4, name="tt", use_bias=False)(y)
    return keras.Model(image, L.Dense(3, activation="softmax", use_bias=False, name="out")(y))


def rows_of(model, runs=0, **options):
    lite = to_tflite(model, **options)
    return lite, {row.layer: row for row in layer_rows(lite, runs)}


def test_every_layer_with_weights_has_a_row_and_its_own_bytes():
    model = nested()
    _, rows = rows_of(model)
    assert list(rows) == ["c", "block/c", "block/bn", "shared", "binary", "tt", "out", OTHER]
    block = model.get_layer("block")
    # The bias that the batch normalisation became is the convolution's.
    assert rows["block/c"].nbytes == 4 * (block.get_layer("c").count_params() + 4)
    assert (rows["block/bn"].form, rows["block/bn"].nbytes) == ("folded", 0)
    assert rows["block/bn"].dense_bytes == 4 * 4 * 4
    for name in ("c", "shared", "out"):
        nbytes = 4 * model.get_layer(name).count_params()
        assert rows[name].nbytes == rows[name].dense_bytes == nbytes
    assert rows["binary"].dense_bytes == 4 * 144 * 64
    # The bias is what takes the place of -1 among the inputs: see `export.signs`.
    assert rows["binary"].nbytes - 4 * 64 in range(144 * 64 // 4, 144 * 64 // 4 + 65)
    # A compressed layer is compared with the layer that it replaces.
    assert rows["tt"].dense_bytes == 4 * 64 * 256
    assert rows["tt"].nbytes == pytest.approx(4 * model.get_layer("tt").count_params(), abs=64)


def test_the_operation_is_the_one_that_reads_the_weights():
    _, rows = rows_of(nested())
    assert rows["c"].operation == "CONV_2D float32"
    assert rows["block/c"].operation == "2 CONV_2D float32"
    assert rows["shared"].operation == "2 FULLY_CONNECTED float32"
    assert rows["binary"].operation == "FULLY_CONNECTED int2" and rows["binary"].form == "int2"
    assert rows["out"].operation == "FULLY_CONNECTED float32"
    assert "RESHAPE" in rows[OTHER].operation


@pytest.mark.parametrize("quantize,form", [("float16", "float16"), ("dynamic", "int8")])
def test_the_form_is_the_type_of_the_weights_in_the_file(quantize, form):
    model = keras.Sequential(
        [keras.Input((64,)), L.Dense(128, name="a"), L.LeakyReLU(), L.Dense(64, name="b")]
    )
    _, rows = rows_of(model, quantize=quantize)
    bits = {"float16": 16, "int8": 8}[form]
    for name in "ab":
        assert rows[name].form == form
        assert rows[name].operation == f"FULLY_CONNECTED {form}"
        assert rows[name].nbytes == pytest.approx(64 * 128 * bits / 8, abs=4 * 128)


def test_int8_rows_have_the_bytes_of_the_kernels():
    model = keras.Sequential([keras.Input((8, 8, 2)), L.Conv2D(16, 3, name="a"), L.Flatten()])
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 2))
    _, rows = rows_of(model, quantize="int8", calibration=x)
    assert rows["a"].form == "int8"
    assert rows["a"].nbytes == 3 * 3 * 2 * 16 + 4 * 16


def test_sequence_layers_own_what_is_in_their_loops():
    tokens = keras.Input((5, 8))
    y = L.MultiHeadAttention(2, 4, name="attention", bias_initializer="normal")(tokens, tokens)
    y = L.LSTM(6, name="lstm", bias_initializer="normal")(y)
    model = keras.Model(tokens, y)
    _, rows = rows_of(model)
    for name in ("attention", "lstm"):
        floats = 4 * model.get_layer(name).count_params()
        assert floats <= rows[name].nbytes + 4 and rows[name].nbytes < floats + 400
        assert rows[name].operation.endswith("FULLY_CONNECTED float32")


@pytest.mark.parametrize("quantize", [None, "float16", "dynamic"])
def test_rows_add_up_to_the_file(quantize):
    lite, rows = rows_of(nested(), quantize=quantize)
    cells = {line[0]: line for line in lite.table(runs=0).cells}
    total = sum(row.nbytes for row in rows.values()) + int(cells["graph"][3].replace(",", ""))
    assert total == lite.nbytes == int(cells["total"][3].replace(",", ""))


def test_sparse_rows_count_their_indices():
    model = keras.Sequential([keras.Input((64,)), L.Dense(64, use_bias=False, name="a")])
    kernel = np.zeros((64, 64), "float32")
    kernel[::8] = np.random.default_rng(0).normal(size=(8, 64))
    model.get_layer("a").kernel.assign(kernel)
    lite, rows = rows_of(model)
    assert "sparse" in rows["a"].form
    assert rows["a"].nbytes == lite.layers[0].nbytes > 2 * np.count_nonzero(kernel)


@pytest.mark.parametrize("quantize", [None, "float16", "dynamic"])
def test_shares_of_latency_add_up_to_one(quantize):
    _, rows = rows_of(nested(), runs=3, quantize=quantize)
    shares = {name: row.share for name, row in rows.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for name, share in shares.items() if name != "block/bn")
    assert shares["block/bn"] == 0


def test_the_layer_with_the_work_has_the_time():
    model = keras.Sequential(
        [keras.Input((32,)), L.Dense(16, name="small"), L.Dense(2048), L.Dense(2048, name="large")]
    )
    _, rows = rows_of(model, runs=5)
    # 4 M products against 512: no clock is needed to tell.
    assert rows["large"].share > 0.5 > rows["small"].share


def test_layers_decoded_once_are_timed_with_their_variable():
    hashed = kc.layers.HashedDense(64, compression=0.25, name="hashed")
    model = keras.Sequential([keras.Input((64,)), L.Dense(64), hashed, L.Dense(4)])
    _, rows = rows_of(model, runs=2)
    assert rows["hashed"].share > 0 and "variable" in rows["hashed"].operation
    assert rows["hashed"].nbytes < 0.3 * rows["hashed"].dense_bytes


def test_names_of_layers_do_not_mix_up_calls():
    x = keras.Input((16,))
    twice = L.Dense(16, name="fc", use_bias=False)
    y = L.Dense(16, name="fc_1", use_bias=False)(twice(twice(x)))
    _, rows = rows_of(keras.Model(x, y))
    assert rows["fc"].operation == "2 FULLY_CONNECTED float32"
    assert rows["fc_1"].operation == "FULLY_CONNECTED float32"
    assert rows["fc"].nbytes == rows["fc_1"].nbytes == 4 * 16 * 16


def test_summary_prints_the_table_and_repr_stays_a_line(capsys):
    lite = to_tflite(nested())
    lite.summary(runs=2)
    printed = capsys.readouterr().out
    for word in ("block/c", "folded", "FULLY_CONNECTED int2", "graph", "total", "%"):
        assert word in printed
    assert "\n" not in repr(lite) and f"{lite.nbytes:,}" in repr(lite)
    assert lite._repr_html_().startswith("<table>") and "block/bn" in lite._repr_html_()


def test_a_model_from_a_file_says_what_it_lacks(tmp_path):
    to_tflite(keras.Sequential([keras.Input((4,)), L.Dense(2)]), tmp_path / "m.tflite")
    lite = LiteModel.load(tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="read from a file"):
        lite.table()
    assert lite._repr_html_().startswith("<code>&lt;LiteModel")


def test_benchmark_takes_models_paths_and_bytes(tmp_path):
    model = keras.Sequential([keras.Input((64,)), L.Dense(64)], name="mine")
    lite = to_tflite(model, tmp_path / "m.tflite")
    half = to_tflite(model, quantize="float16")
    timing = lite.benchmark(half, tmp_path / "m.tflite", str(lite.path), lite.content, runs=3)
    assert timing.names == ("m.tflite", "mine", "m.tflite (3)", "m.tflite (4)", "model 5")
    assert timing.nbytes == (lite.nbytes, half.nbytes, *[lite.nbytes] * 3)
    text = str(timing)
    assert "faster" in text and f"{half.nbytes:,}" in text and "1.00x" in text
    assert timing.table().cells[1][2] == f"{lite.nbytes / half.nbytes:,.2f}x"
    assert timing._repr_html_().startswith("<table>")


@pytest.mark.parametrize("options", [{"runs": 0}, {"runs": 2.5}, {"threads": 0}])
def test_benchmark_refuses_bad_counts(options):
    lite = to_tflite(keras.Sequential([keras.Input((4,)), L.Dense(2)]))
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be a positive integer"):
        lite.benchmark(**options)


def test_benchmark_refuses_what_is_no_tflite():
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    with pytest.raises(ValueError, match="LiteModel, a path or bytes; got Sequential"):
        to_tflite(model).benchmark(model)
