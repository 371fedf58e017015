"""compare(): one row a model, measured on the .tflite."""

import keras
import numpy as np
import pytest

import keras_compress as kc

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 64)).astype("float32"), RNG.integers(0, 4, 30)


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(0)
    dense = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(256, name="fc"), keras.layers.Dense(4)]
    )
    small = kc.convert(dense, {"fc": lambda fc: kc.layers.TTDense.from_layer(fc, rank=1)})
    return {"dense": dense, "tt": small}


def test_rows_hold_what_the_parts_measure(models, capsys):
    lite = kc.export.to_tflite(models["dense"], quantize="dynamic")
    comparison = kc.profile.compare({**models, "int8": lite}, (X, Y), runs=5)
    printed = capsys.readouterr().out
    assert [row.name for row in comparison] == ["dense", "tt", "int8"]
    for name, model in models.items():
        row = comparison[name]
        assert row.parameters == model.count_params()
        assert row.macs == kc.profile.macs(model)
        assert row.storage_bits == kc.profile.storage_bits(model)
        expected = np.mean(np.argmax(model.predict(X, verbose=0), -1) == Y)
        assert row.accuracy == pytest.approx(expected)
        assert name in printed
    assert comparison["dense"].smaller == comparison["dense"].faster == 1.0
    assert comparison["int8"].tflite_bytes == lite.nbytes
    assert comparison["tt"].smaller == comparison["dense"].tflite_bytes / (
        comparison["tt"].tflite_bytes
    )
    assert "<table>" in comparison._repr_html_()
    assert list(comparison.to_pandas()["name"]) == ["dense", "tt", "int8"]


def test_plot_is_written(models, tmp_path):
    comparison = kc.profile.compare(models, (X, Y), runs=3, verbose=False)
    figure = comparison.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert [axis.get_xscale() for axis in figure.axes] == ["log", "log"]


def test_one_hot_labels_and_own_metrics(models):
    one_hot = np.eye(4)[Y]
    a, b = (kc.profile.compare(models, (X, y), runs=1, verbose=False) for y in (Y, one_hot))
    assert a["tt"].accuracy == b["tt"].accuracy
    own = kc.profile.compare(models, (X, Y), metric=lambda y, p: p.shape[1], runs=1, verbose=False)
    assert own["tt"].accuracy == 4


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m: kc.profile.compare({}), "at least one"),
        (lambda m: kc.profile.compare({"a": 3}), "keras.Model"),
        (lambda m: kc.profile.compare(m, X), r"pair \(x, y\)"),
        (lambda m: kc.profile.compare(m, (X, Y), metric="auc"), "metric"),
        (lambda m: kc.profile.compare(m, runs=1, verbose=False).plot(), "give compare"),
    ],
)
def test_bad_arguments_are_refused(models, call, message):
    with pytest.raises(ValueError, match=message):
        call(models)
