"""`latency_table` with an injected timer: what is measured, interpolation, JSON."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from keras_compress.profile.latency_table import LatencyTable, LayerLatency


def model():
    x = inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(16, 3, padding="same", name="a")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="d")(x)
    x = layers.Conv2D(16, 1, name="b")(x)
    x = layers.Conv2D(16, 1, name="c")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="fc")(x))


def macs_timer(models):
    macs_timer.shapes += [(m.input_shape[1:], m.output_shape[1:]) for m in models]
    return [kc.profile.macs(m) * 1e-9 for m in models]


@pytest.fixture(autouse=True)
def _fresh():
    macs_timer.shapes = []


def test_each_layer_is_timed_alone_at_the_widths_and_like_ones_once():
    table = kc.profile.latency_table(model(), (0.25, 0.5), timer=macs_timer)
    assert list(table.layers) == ["a", "d", "b", "c", "fc"]
    a = table.layers["a"]
    assert a.inputs == (1, 2) and a.outputs == (4, 8, 16)
    assert table.layers["d"].inputs == (4, 8, 16) and table.layers["d"].seconds.shape == (3, 1)
    # b and c are alike: 2 * 3 + 3 + 3 * 3 + 3 * 3 models.
    assert len(macs_timer.shapes) == 27
    assert ((8, 8, 1), (8, 8, 4)) in macs_timer.shapes
    assert table.layers["b"].seconds is table.layers["c"].seconds


def test_interpolation_is_bilinear_and_ends_at_the_grid():
    seconds = np.array([[1.0, 2.0, 4.0], [3.0, 4.0, 8.0]])
    table = LatencyTable([LayerLatency("a", (2, 6), (4, 8, 16), seconds)])
    for row, inputs in enumerate((2, 6)):
        for column, outputs in enumerate((4, 8, 16)):
            assert table.seconds("a", inputs, outputs) == seconds[row, column]
    # Of scipy's RegularGridInterpolator.
    from scipy.interpolate import RegularGridInterpolator

    oracle = RegularGridInterpolator(((2, 6), (4, 8, 16)), seconds)
    for inputs, outputs in [(3, 5), (5.5, 12), (2, 15)]:
        assert table.seconds("a", inputs, outputs) == pytest.approx(oracle((inputs, outputs)))
    assert table.seconds("a", 1, 1) == 1.0 and table.seconds("a", 9, 99) == 8.0
    with pytest.raises(ValueError, match="'b' was not measured.*Did you mean|'b' was not measured"):
        table.seconds("b", 1, 1)


def test_json_round_trip_and_print(tmp_path):
    table = kc.profile.latency_table(model(), timer=macs_timer)
    table.save(tmp_path / "table.json")
    back = LatencyTable.load(tmp_path / "table.json")
    assert str(back) == str(table) and "16 -> 16" in str(table)
    for name, layer in table.layers.items():
        assert back.layers[name].inputs == layer.inputs
        np.testing.assert_array_equal(back.layers[name].seconds, layer.seconds)


def test_the_built_in_timer_measures_on_lite_rt():
    small = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="fc")])
    table = kc.profile.latency_table(small, (1.0,), runs=2)
    assert 0 < table.seconds("fc", 4, 4) < 1


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="no Dense layer or convolution"):
        kc.profile.latency_table(keras.Sequential([keras.Input((4,)), layers.ReLU()]))
    with pytest.raises(ValueError, match="open input shape"):
        kc.profile.latency_table(
            keras.Sequential([keras.Input((None, 4)), layers.Conv1D(3, 2)]), timer=macs_timer
        )
    with pytest.raises(ValueError, match="`widths` must be a number in"):
        kc.profile.latency_table(model(), (0.5, 2))
