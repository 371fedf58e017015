"""int4, 16x8 and modes layer by layer: bits in the file, outputs, refusals."""

import json
import zipfile

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.export import to_tflite
from tests.export.stored_models import assert_clean, constants

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 8, 8, 4)).astype("float32")
ROWS = RNG.normal(size=(40, 32)).astype("float32")


def cnn():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 4))
    y = L.Conv2D(8, 3, padding="same", activation="relu", name="conv1")(x)
    z = L.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    z = L.BatchNormalization(name="norm")(z)
    y = L.MaxPooling2D(name="pool")(L.Add(name="add")([y, z]))
    y = L.Dense(32, activation="relu", name="fc1")(L.Flatten(name="flat")(y))
    return keras.Model(x, L.Dense(5, name="fc2")(y))


def mlp(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((32,)), *layers])


def stored(lite):
    """Dict from each layer with weights to the type of its largest constant."""
    return {row[0]: row[1] for row in lite.table(runs=0).cells[:-2] if row[0] != "other layers"}


def types_of(lite, rank=2):
    """Types of the matrices (or tensors of another rank) in the file, as they are unpacked here."""
    kinds = ("INT2", "INT4", "INT8", "FLOAT16", "FLOAT32")
    return {kind: sum(c[0].ndim == rank for c in constants(lite, kind)) for kind in kinds}


def test_int4_weights_are_within_half_a_step_of_the_float_ones():
    model = mlp(L.Dense(24, name="fc"))
    lite = to_tflite(model, quantize="int4", calibration=ROWS)
    assert_clean(lite)
    ((ints, scale),) = [c for c in constants(lite, "INT4") if c[0].ndim == 2]
    kernel = np.asarray(model.layers[0].kernel).T
    scale = np.array(scale)[:, None]
    assert scale.shape == (24, 1) and np.abs(ints).max() <= 7
    assert (np.abs(ints * scale - kernel) <= 0.5001 * scale).all()
    np.testing.assert_allclose(scale[:, 0], np.abs(kernel).max(1) / 7, rtol=0.08)
    # What the kernel computes: these weights, inputs rounded to int8.
    expected = ROWS @ (ints * scale).T
    np.testing.assert_allclose(lite.predict(ROWS), expected, atol=0.02 * np.abs(expected).max())


def test_int4_is_for_dense_layers_and_int8_for_convolutions():
    model = cnn()
    expected = {"conv1": "int8", "depthwise": "int8", "norm": "folded"}
    fast = to_tflite(model, quantize="int4", calibration=X)
    assert stored(fast) == {**expected, "fc1": "int4", "fc2": "int4"}
    small = to_tflite(model, quantize="int4", calibration=X, optimize_for="size")
    assert stored(small) == {**expected, "conv1": "int4", "fc1": "int4", "fc2": "int4"}
    assert small.nbytes < fast.nbytes < to_tflite(model, quantize="dynamic").nbytes
    assert fast.max_error < 0.15 and small.max_error < 0.25


def test_16x8_is_closer_to_float_than_int8_by_far():
    model = cnn()
    wide = to_tflite(model, quantize="16x8", calibration=X)
    assert wide.max_error < 0.01 < 2 * to_tflite(model, quantize="int8", calibration=X).max_error
    assert set(wide.ops) >= {"QUANTIZE", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
    assert wide.ops.count("QUANTIZE") == wide.ops.count("DEQUANTIZE") == 1
    assert types_of(wide)["INT8"] == 2 and types_of(wide)["FLOAT32"] == 0
    assert [entry["dtype"] for entry in wide.signature("input")] == ["float32"]


def test_static_modes_of_all_layers_are_as_close_as_those_of_the_converter():
    """16x8 and int8 come from another tool than the whole-model int8."""
    model = cnn()
    ours = to_tflite(model, quantize={"*": "int8"}, calibration=X)
    theirs = to_tflite(model, quantize="int8", calibration=X)
    assert ours.max_error < 1.5 * theirs.max_error and ours.ops == theirs.ops


def test_each_layer_is_stored_as_its_key_says():
    model = cnn()
    quantize = {"fc*": "int4", "conv1": None, "*": "int8"}
    lite = to_tflite(model, quantize=quantize, calibration=X)
    assert_clean(lite)
    assert stored(lite) == {
        "conv1": "float32",
        "depthwise": "int8",
        "norm": "folded",
        "fc1": "int4",
        "fc2": "int4",
    }
    assert lite.max_error < 0.15
    np.testing.assert_array_equal(
        [c[0] for c in constants(lite, "FLOAT32") if c[0].ndim == 4][0],
        np.moveaxis(np.asarray(model.get_layer("conv1").kernel), -1, 0),
    )


def test_classes_predicates_and_the_first_match_count():
    quantize = {
        lambda layer: layer.name == "fc2": "16x8",
        L.DepthwiseConv2D: "float16",
        L.Dense: "int4",
        "fc1": None,
        "conv1": "dynamic",
    }
    lite = to_tflite(cnn(), quantize=quantize, calibration=X)
    expected = {"conv1": "int8", "depthwise": "float16", "fc1": "int4", "fc2": "int8"}
    assert stored(lite) == {**expected, "norm": "folded"} and lite.max_error < 0.15


def test_layers_that_no_key_matches_stay_float():
    lite = to_tflite(cnn(), quantize={"fc1": "int4"})
    assert (
        stored(lite)["fc1"] == "int4" and stored(lite)["fc2"] == stored(lite)["conv1"] == "float32"
    )


def test_nested_models_and_layers_of_equal_weights_tell_apart():
    inner = keras.Sequential([keras.Input((32,)), L.Dense(32, name="fc")], name="inner")
    model = mlp(L.Dense(32, name="fc0"), inner, L.Dense(3, name="out"))
    inner.layers[0].set_weights(model.layers[0].get_weights())
    lite = to_tflite(model, quantize={"fc0": None, "fc": "int4"}, calibration=ROWS)
    assert_clean(lite)
    assert types_of(lite) == {"INT2": 0, "INT4": 1, "INT8": 0, "FLOAT16": 0, "FLOAT32": 2}
    assert lite.max_error < 0.15


@pytest.mark.parametrize("batch_size", [1, 4, None])
@pytest.mark.parametrize("quantize", ["int4", "16x8", {"*": "int8"}])
def test_batches_fixed_or_open(batch_size, quantize):
    model = mlp(L.Dense(16, activation="relu"), L.Dense(4))
    lite = to_tflite(model, quantize=quantize, calibration=ROWS, batch_size=batch_size)
    assert lite.max_error < (0.2 if quantize == "int4" else 0.03)


@pytest.mark.parametrize("mode", ["16x8", "int8"])
def test_outputs_that_other_layers_read_too(mode):
    x = keras.Input((32,))
    hidden = L.Dense(16, activation="relu", name="hidden")(x)
    model = keras.Model(x, [hidden, L.Dense(3, name="out")(hidden), hidden + 1.0])
    lite = to_tflite(model, quantize={"*": mode}, calibration=ROWS)
    assert_clean(lite)
    assert lite.max_error < 0.03 and {"hidden", "out"} < set(lite.output_names)


def test_a_layer_called_twice_is_stored_once():
    x, fc = keras.Input((32,)), L.Dense(32, name="fc")
    lite = to_tflite(keras.Model(x, fc(keras.ops.tanh(fc(x)))), quantize="int4", calibration=ROWS)
    assert types_of(lite)["INT4"] == 1 and lite.max_error < 0.2


def test_batch_matmul_of_circulant_layers_in_integers():
    """Scales by channel, the tool's default, are read along another axis by LiteRT."""
    model = mlp(kc.layers.CirculantDense(32, block_size=8))
    for mode, allowed in (("int8", 0.08), ("16x8", 0.02)):
        lite = to_tflite(model, quantize={"*": mode}, calibration=ROWS)
        assert "BATCH_MATMUL" in lite.ops and lite.max_error < allowed


def test_embeddings_are_tables_of_int8_without_calibration():
    model = keras.Sequential(
        [keras.Input((6,), dtype="int32"), L.Embedding(40, 16, name="e"), L.Flatten(), L.Dense(3)]
    )
    tokens = RNG.integers(0, 40, size=(20, 6))
    for quantize in ({"e": "int4"}, {"e": "dynamic"}):
        lite = to_tflite(model, quantize=quantize)
        lite.compare_with_keras([tokens.astype("int32")])
        assert stored(lite)["e"] == "int8" and lite.max_error < 0.03


def test_recurrent_layers_beside_quantised_ones():
    model = keras.Sequential(
        [keras.Input((5, 4)), L.LSTM(8, name="lstm"), L.Dense(16, name="fc"), L.Dense(3)]
    )
    x = RNG.normal(size=(10, 5, 4)).astype("float32")
    lite = to_tflite(model, quantize={"fc": "int8"}, calibration=x)
    assert stored(lite)["fc"] == "int8" and lite.max_error < 0.03
    with pytest.raises(
        ValueError, match="no layer that 'lstm' chooses has a form .*'lstm' .*WHILE"
    ):
        to_tflite(model, quantize={"lstm": "int8", "fc": "int4"}, calibration=x)


# Stored kernels.


def ternary_and_dense():
    ternary = kc.layers.QuantDense(32, kernel_quantizer="ternary", name="ternary")
    return mlp(ternary, L.Dense(16, name="fc"))


@pytest.mark.parametrize("quantize", ["int4", {"ternary": None, "fc": "int4"}, {"*": "int4"}])
def test_stored_kernels_keep_their_form_where_activations_are_float(quantize):
    model = ternary_and_dense()
    lite = to_tflite(model, quantize=quantize, calibration=ROWS)
    assert_clean(lite)
    form = stored(to_tflite(model))["ternary"]
    assert stored(lite) == {"ternary": form, "fc": "int4"} and lite.max_error < 0.15
    matrices = [c[0] for kind in ("INT2", "INT4") for c in constants(lite, kind)]
    codes = model.layers[0].kernel_codes().ints
    assert any(np.array_equal(ints.T, codes) for ints in matrices)


@pytest.mark.parametrize("mode,kind", [("int8", "int4"), ("16x8", "int8")])
def test_stored_kernels_are_integers_with_integer_activations(mode, kind):
    lite = to_tflite(ternary_and_dense(), quantize={"*": mode}, calibration=ROWS)
    assert stored(lite) == {"ternary": kind, "fc": "int8"}
    assert lite.max_error < 0.03 and lite.ops.count("QUANTIZE") == 1


def test_a_stored_kernel_beside_integer_activations():
    model = ternary_and_dense()
    lite = to_tflite(model, quantize={"fc": "int8"}, calibration=ROWS)
    form = stored(to_tflite(model))["ternary"]
    assert stored(lite) == {"ternary": form, "fc": "int8"} and lite.max_error < 0.05


def test_kernels_decoded_at_load_beside_quantised_layers():
    model = mlp(kc.layers.HashedDense(64, name="hashed"), L.Dense(16, name="fc"))
    for quantize in ("int4", {"fc": "int8"}):
        lite = to_tflite(model, quantize=quantize, calibration=ROWS)
        assert "hashed" in lite.layers[0].form and lite.max_error < 0.15
        assert stored(lite)["fc"] == ("int4" if quantize == "int4" else "int8")


def test_zeros_of_float_layers_are_left_out_beside_int4():
    model = mlp(L.Dense(64, name="sparse"), L.Dense(64, name="also"), L.Dense(3))
    for layer in model.layers[:2]:
        kernel = np.asarray(layer.kernel) * (RNG.random(layer.kernel.shape) > 0.9)
        layer.kernel.assign(kernel)
    lite = to_tflite(model, quantize={"also": "int4"}, calibration=ROWS)
    assert [layer.layer for layer in lite.layers] == ["sparse"]
    assert stored(lite)["also"] == "int4" and lite.max_error < 0.15


def test_a_mode_of_fewer_bits_than_a_stored_form_is_refused():
    wide = kc.layers.QuantDense(16, kernel_quantizer=kc.quantizers.Uniform(8), name="wide")
    model = mlp(wide, L.Dense(16, name="fc"))
    with pytest.raises(ValueError, match=r"layer 'wide' is stored .*\{'wide': None\}.*'dense'"):
        to_tflite(model, quantize={"*": "int4"})
    lite = to_tflite(model, quantize={"wide": None, "*": "int4"})
    assert stored(lite) == {"wide": "int8", "fc": "int4"}
    lite = to_tflite(model, quantize={"*": "int4"}, storage="dense")
    assert stored(lite) == {"wide": "int4", "fc": "int4"}
    assert stored(to_tflite(model, quantize="int4")) == {"wide": "int8", "fc": "int4"}


# Refusals.


@pytest.mark.parametrize(
    "quantize,message",
    [
        ("int3", "`quantize` must be one of .*'int4'.*got quantize='int3'"),
        ({"fc1": "int3"}, r"`quantize\['fc1'\]` must be one of .*got .*'int3'"),
        ({"fc1": 4}, r"`quantize\['fc1'\]` must be one of"),
        ({}, "`quantize` is empty"),
        ({"fc3": "int4"}, "No layer matches 'fc3'.*Did you mean 'fc2'"),
        ({3: "int4"}, "chosen by name, glob"),
        ({"flat": "int4"}, r"no layer that 'flat' chooses .*'flat' \(RESHAPE\).*Leave it float"),
        ({"norm": "int4"}, r"'norm' \(fused or folded\).*has that one's mode"),
        ({"fc1": "int8"}, "needs `calibration`"),
        ("16x8", "quantize='16x8' needs `calibration`"),
    ],
)
def test_bad_modes_are_refused(quantize, message):
    with pytest.raises(ValueError, match=message):
        to_tflite(cnn(), quantize=quantize)


@pytest.mark.parametrize("quantize", ["int8", "16x8", {"fc1": "int8"}])
@pytest.mark.parametrize(
    "calibration,message",
    [
        (X[:0], "no samples"),
        ([], "empty"),
        ([X[:0]], "no samples"),
        (X[..., :1], r"shape \(samples, 8, 8, 4\)"),
        ([1, 2, 3], r"shape \(samples, 8, 8, 4\); got \(\)"),
        ([(X, X), (X[:, :4], X)], r"shape \(samples, 8, 8, 4\)"),
        (X * np.nan, "NaN or infinite"),
        (X.astype("float64") * 1e300, "NaN or infinite"),
        (np.full(X.shape, "a"), "must be numbers"),
    ],
)
def test_bad_calibration_is_refused(quantize, calibration, message):
    with pytest.raises(ValueError, match=f"calibration: .*{message}"):
        to_tflite(cnn(), quantize=quantize, calibration=calibration)


def test_calibration_of_unequal_or_too_few_rows_is_refused():
    left, right = keras.Input((32,), name="left"), keras.Input((32,), name="right")
    model = keras.Model([left, right], L.Dense(3)(L.Concatenate()([left, right])))
    with pytest.raises(ValueError, match="differ in their numbers of samples: .*40.*10"):
        to_tflite(model, quantize="16x8", calibration=[ROWS, ROWS[:10]])
    with pytest.raises(ValueError, match="takes 16 samples at a time .*got 10"):
        to_tflite(model, quantize="int8", calibration=[ROWS[:10], ROWS[:10]], batch_size=16)


def test_integers_made_of_nan_are_refused():
    model = keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(9, 4), L.Flatten()])
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_tflite(model, quantize="16x8", calibration=np.full((3, 4), np.nan))


def test_nan_inside_of_the_model_names_the_layer():
    model = mlp(L.Dense(8, name="fine"), L.Dense(8, name="broken"), L.Dense(2))
    model.get_layer("broken").kernel.assign(np.full((8, 8), np.nan))
    with pytest.raises(ValueError, match="layer 'broken' gives NaN"):
        to_tflite(model, quantize={"*": "int8"}, calibration=ROWS)


def test_models_trained_for_integers_take_no_other_modes():
    aware = kc.quantizers.quantize_aware(mlp(L.Dense(8, name="fc")))
    with pytest.raises(ValueError, match="Leave `quantize` out"):
        to_tflite(aware, quantize={"*": "int4"})


def test_a_bundle_writes_the_keys_down(tmp_path):
    model = mlp(L.Dense(8, name="fc"))
    kc.export.bundle(model, tmp_path / "m.zip", quantize={L.Dense: "int4"}, runs=1)
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        card = json.loads(archive.read("card.json"))
    assert card["provenance"]["export"]["quantize"] == {"Dense": "int4"}
