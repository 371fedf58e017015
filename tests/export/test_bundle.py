"""bundle: a card that anyone can read, of the file beside it; whole or not at all."""

import hashlib
import json
import os
import zipfile

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.export import LiteModel, bundle

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 64)).astype("float32"), RNG.integers(0, 3, 60)


def compressed():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((64,), name="features"),
            kc.layers.TTDense(64, rank=3, name="tt"),
            kc.layers.BinaryDense(32, name="binary", input_quantizer=None),
            L.Dense(3, name="scores"),
        ],
        name="tiny",
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    card = bundle(compressed(), path, data=(X, Y), calibration=X, runs=3, threads=1)
    return path, card


def test_the_card_is_plain_json_and_what_was_returned(written):
    path, card = written
    assert sorted(file.name for file in path.iterdir()) == ["card.json", "model.tflite"]
    assert json.loads((path / "card.json").read_text()) == json.loads(json.dumps(card))
    assert (card["format"], card["format_version"]) == ("keras_compress.card", 1)
    assert card["name"] == "tiny" and card["created"].endswith("+00:00")


def test_the_card_is_of_the_file_beside_it(written):
    path, card = written
    content = (path / card["file"]).read_bytes()
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    assert card["metrics"]["bytes"] == len(content)
    assert sum(row["bytes"] for row in card["layers"]) < len(content)
    assert card["inputs"] == [{"name": "features", "shape": [1, 64], "dtype": "float32"}]
    assert card["outputs"] == [{"name": "scores", "shape": [1, 3], "dtype": "float32"}]


def test_the_metrics_are_those_of_the_file_and_the_model(written):
    path, card = written
    metrics, model = card["metrics"], compressed()
    outputs = LiteModel.load(path / card["file"]).predict(X)
    assert metrics["accuracy"] == np.mean(outputs.argmax(-1) == Y)
    assert metrics["samples"] == 60 and metrics["metric"] == "accuracy"
    assert metrics["parameters"] == model.count_params()
    tt, binary, scores = model.layers
    assert metrics["macs"] == tt.macs() + 64 * 32 + 32 * 3
    bits = tt.storage_bits() + binary.storage_bits() + 32 * scores.count_params()
    assert metrics["storage_bits"] == bits
    assert metrics["max_error"] < 0.1
    assert card["latency"]["median_us"] > 0 and card["latency"]["threads"] == 1
    assert card["latency"]["machine"]["cores"] == os.cpu_count()


def test_the_layers_and_the_provenance_are_told(written):
    _, card = written
    rows = {row["layer"]: row for row in card["layers"]}
    assert rows["tt"]["float32_bytes"] == 4 * (64 * 64 + 64)
    assert rows["binary"]["runs_as"] == "FULLY_CONNECTED int2"
    assert sum(row["time_share"] for row in card["layers"]) == pytest.approx(1)
    steps = {step["layer"]: step for step in card["provenance"]["compression"]}
    assert list(steps) == ["tt", "binary"]
    assert (steps["tt"]["class"], steps["tt"]["replaces"]) == ("TTDense", "Dense")
    assert steps["tt"]["arguments"]["rank"] == [3]
    assert "units" not in steps["tt"]["arguments"]
    assert card["provenance"]["export"] == {
        "quantize": None,
        "calibration": True,
        "batch_size": 1,
        "storage": "auto",
        "optimize_for": "latency",
    }
    versions = card["provenance"]["versions"]
    assert versions["keras"] == keras.__version__
    assert versions["keras_compress"] == kc.__version__
    assert {"tensorflow", "ai_edge_litert", "python"} <= set(versions)


def test_a_zip_holds_the_same_and_is_replaced(tmp_path):
    path = tmp_path / "tiny.zip"
    path.write_bytes(b"an older one")
    card = bundle(compressed(), path, quantize="float16", runs=2)
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["card.json", "model.tflite"]
        assert json.loads(archive.read("card.json")) == json.loads(json.dumps(card))
        content = archive.read("model.tflite")
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    assert card["metrics"]["accuracy"] is None and card["metrics"]["samples"] is None
    assert list(tmp_path.iterdir()) == [path]


def test_several_inputs_in_the_order_of_the_model_and_open_axes(tmp_path):
    keras.utils.set_random_seed(0)
    b, a = keras.Input((None, 6), name="b"), keras.Input((4,), name="a")
    joined = L.Concatenate()([L.GlobalAveragePooling1D()(L.Dense(6)(b)), a])
    model = keras.Model([b, a], L.Dense(3)(joined))
    x = [RNG.normal(size=(20, 5, 6)).astype("float32"), X[:20, :4]]
    card = bundle(model, tmp_path / "m.zip", data=(x, Y[:20]), batch_size=None, runs=2)
    shapes = {entry["name"]: entry["shape"] for entry in card["inputs"]}
    assert shapes == {"a": [None, 4], "b": [None, None, 6]}
    expected = np.argmax(model(x), -1)
    assert card["metrics"]["accuracy"] == np.mean(expected == Y[:20])
    assert card["metrics"]["macs"] is None


def test_a_metric_of_ones_own(tmp_path):
    def error(y_true, y_pred):
        return np.abs(y_true - y_pred.argmax(-1)).max()

    card = bundle(compressed(), tmp_path / "m.zip", data=(X, Y), metric=error, runs=2)
    assert card["metrics"]["metric"] == "error" and card["metrics"]["accuracy"] in (0.0, 1.0, 2.0)


@pytest.mark.parametrize("name", ["m", "m.zip"])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, name):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        bundle(compressed(), tmp_path / name, runs=2)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes").write_text("mine")
    for path in (tmp_path / "file", full):
        with pytest.raises(ValueError, match="something at .* already"):
            bundle(compressed(), path)
    assert (full / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    bundle(compressed(), tmp_path / "empty", runs=2)
    assert (tmp_path / "empty" / "card.json").exists()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"path": "/no/such/folder/m.zip"}, "no folder"),
        ({"data": X}, r"pair \(x, y\)"),
        ({"data": ([X, X], Y)}, "data: the model takes 1 inputs; got 2"),
        ({"data": (X, Y), "metric": "f1"}, "metric"),
        ({"quantize": "int8"}, "needs `calibration`"),
        ({"runs": 0}, "`runs` must be a positive integer"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        bundle(compressed(), **({"path": tmp_path / "m.zip"} | options))
    assert list(tmp_path.iterdir()) == []
